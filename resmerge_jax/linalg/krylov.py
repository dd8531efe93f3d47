"""Top-k singular triplets by a thick-restarted block Krylov iteration.

One matrix per call; callers vmap over experts and layers. The basis lives on the
column side: a step multiplies a block of P row vectors by `delta^T` and `delta`, so
with rows sharded over devices it needs one all-reduce of P x C numbers. Theory:
Golub & Van Loan, Matrix Computations, 10.4; Wu & Simon, Thick-Restart Lanczos,
SIAM J. Matrix Anal. Appl. 22 (2000); error bounds: Parlett, The Symmetric
Eigenvalue Problem, 11.7 (residual over gap).
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PRECISION = jax.lax.Precision.HIGHEST
EPS = 2.0**-24  # unit round-off of float32
# Krylov steps before each Rayleigh-Ritz test: 5, 5, then 10. Well separated heads settle
# at once; close spectra want longer chains. After 50 steps the host takes over.
MIN_STEPS, MAX_STEPS, MAX_CYCLES = 5, 10, 6
TOLERANCE = 1e-5  # wanted relative error of the head; stops ten times below MAX_ERROR
MAX_ERROR = 1e-4  # above this estimate a head must not be used
THIN = 64  # short sides up to this go through the whole Gram matrix
# Rounding, in units of EPS sigma_1^2: what an eigh of the whole Gram matrix leaves as
# residual; what a measured residual may miss; where a new direction is only noise.
WHOLE_GRAM, MEASURED, NOISE = 8.0, 1.0, 8.0
FLOOR = 2e-6  # error of a perfectly separated head: rounding of y and v themselves


class Head(NamedTuple):
  """The head sum_k y_k v_k^T = delta V V^T of one matrix (paper, Eq. 6).

  `y_KxR` are left vectors scaled by their singular value, `v_KxC` orthonormal rows,
  `sigma_K` descending. `error` estimates ||H - H_exact|| / ||H_exact||;
  `certified` is True only where no larger singular value can have been missed.
  """

  y_KxR: jax.Array
  v_KxC: jax.Array
  sigma_K: jax.Array
  sigma_next: jax.Array
  error: jax.Array
  certified: jax.Array
  ritz_MxC: jax.Array  # orthonormal rows that start the host's solver


class Ritz(NamedTuple):
  """Leading Ritz pairs of one matrix; M is P or all there are.

  K is the largest rank that was asked for. `theta_M`, the squared Ritz values, and
  `rho_M`, their residual norms, are relative to ||delta||^2, `y_KxR` is not.
  """

  y_KxR: jax.Array
  v_PxC: jax.Array
  theta_M: jax.Array
  rho_M: jax.Array


class _Basis(NamedTuple):
  v_MxC: jax.Array  # orthonormal rows (zero rows are unused)
  t_MxM: jax.Array  # v delta^T delta v^T
  x_PxC: jax.Array  # next block, orthonormal to v
  cycle: jax.Array
  settled: jax.Array


def block_size(k: int) -> int:
  """P: wide enough to see a cluster of up to three values below sigma_k."""
  return k + 3


def ritz_size(k: int, short: int) -> int:
  """M of `Head.ritz_MxC`."""
  return min(block_size(k), short)


def top_k(delta_RxC: jax.Array, k: int, start_PxC: jax.Array) -> Head:
  """Head of rank `k` of one float32 matrix, with an estimate of its error.

  `start_PxC` holds random orthonormal rows, P = block_size(k). Where `error` exceeds
  MAX_ERROR the gap after sigma_k is too small for float32 (or the cap on steps was
  reached) and the caller must ask `linalg.exact`. A zero matrix gives a zero head with error 0.
  """
  return top_ks(delta_RxC, (k,), start_PxC)[0]


def top_ks(
  delta_RxC: jax.Array, ks: tuple[int, ...], start_PxC: jax.Array
) -> tuple[Head, ...]:
  """Heads of several ranks from one iteration, each as `top_k` tells of it."""
  energy = jnp.sum(jnp.sum(delta_RxC * delta_RxC, axis=1))
  ritz = ritz_pairs(delta_RxC, ks, start_PxC, energy)
  return tuple(head_of(ritz, k, min(delta_RxC.shape), energy) for k in ks)


def ritz_pairs(
  delta_RxC: jax.Array, ks: tuple[int, ...], start_PxC: jax.Array, energy: jax.Array
) -> Ritz:
  """What `head_of` makes heads of these ranks of; `energy` is ||delta||^2.

  P is that of the largest rank. It ends when every head is good enough: that of a lower
  rank may have a narrower gap after it.
  """
  short = min(delta_RxC.shape)
  ks = tuple(min(k, short) for k in ks)
  scale = jnp.where(energy > 0, jax.lax.rsqrt(energy), 0.0)
  if short <= THIN:
    p = min(block_size(max(ks)), short)
    ritz = _whole_space(delta_RxC, p, scale)
  else:
    ritz = _krylov(delta_RxC, ks, start_PxC, scale)
  return ritz._replace(y_KxR=ritz.y_KxR[: max(ks)])


def head_of(ritz: Ritz, k: int, short: int, energy: jax.Array) -> Head:
  """The head of rank k of a matrix with ||delta||^2 = `energy`, `short` its short side."""
  k = min(k, short)
  theta_M, rho_M = ritz.theta_M, ritz.rho_M
  theta_next = theta_M[k] if k < short else jnp.float32(0)
  # Weyl: a value outside the head is at most theta_{k+1}, or the energy left beside the
  # basis, plus what couples the two.
  beside = jnp.maximum(theta_next, 1.0 - theta_M.sum() + 1e-5)
  nothing_hidden = beside + jnp.linalg.norm(rho_M) < theta_M[k - 1]
  error = _head_error(theta_M, rho_M, k) if k < short else jnp.float32(0)
  return Head(
    y_KxR=ritz.y_KxR[:k],
    v_KxC=ritz.v_PxC[:k],
    sigma_K=jnp.sqrt(theta_M[:k] * energy),
    sigma_next=jnp.sqrt(theta_next * energy),
    error=jnp.where(energy > 0, error + FLOOR, 0.0),
    certified=(energy == 0) | (short <= THIN) | nothing_hidden,
    ritz_MxC=ritz.v_PxC[: ritz_size(k, short)],
  )


def _dot(spec: str, *operands: jax.Array) -> jax.Array:
  return jnp.einsum(spec, *operands, precision=PRECISION)


def _head_error(theta_M: jax.Array, rho_M: jax.Array, k: int) -> jax.Array:
  """Relative Frobenius error of the rank-k head: residual over gap, per triplet.

  Values are relative to ||delta||^2. Rotations inside the head do no harm, so the
  gap that counts is the one to theta_{k+1}, lowered by what it may still grow.
  """
  gap_K = theta_M[:k] - theta_M[k] - rho_M[k]
  leak_K = jnp.where(gap_K > 0, rho_M[:k] / gap_K, jnp.inf)
  lost = jnp.sum(theta_M[:k] * jnp.minimum(leak_K, 1.0) ** 2)
  return jnp.sqrt(2 * lost / theta_M[:k].sum())


def _whole_space(delta_RxC: jax.Array, p: int, scale: jax.Array) -> Ritz:
  """All Ritz values of a thin matrix from the Gram matrix of its short side.

  The leading P pairs get vectors.
  """
  d_RxC = delta_RxC * scale
  if d_RxC.shape[0] >= d_RxC.shape[1]:
    s_CxM, theta_M = _eigh(_dot('rc,rm->cm', d_RxC, d_RxC))
    v_PxC = s_CxM[:, ::-1][:, :p].T
    y_PxR = _dot('rc,pc->rp', delta_RxC, v_PxC).T
  else:
    s_RxM, theta_M = _eigh(_dot('rc,mc->rm', d_RxC, d_RxC))
    u_PxR = s_RxM[:, ::-1][:, :p].T
    v_PxC = _dot('pr,rc->pc', u_PxR, d_RxC)
    size_P = jnp.linalg.norm(v_PxC, axis=1, keepdims=True)
    v_PxC = jnp.where(size_P > 0, v_PxC / jnp.where(size_P > 0, size_P, 1.0), 0.0)
    y_PxR = u_PxR * jnp.where(scale > 0, size_P / scale, 0.0)
  theta_M = jnp.maximum(theta_M[::-1], 0.0)
  theta_M = theta_M.at[:p].set(jnp.sum((y_PxR * scale) ** 2, axis=1))
  rho_M = jnp.full_like(theta_M, WHOLE_GRAM * EPS) * theta_M[0]
  return Ritz(y_PxR, v_PxC, theta_M, rho_M)


def _krylov(
  delta_RxC: jax.Array, ks: tuple[int, ...], start_PxC: jax.Array, scale: jax.Array
) -> Ritz:
  n_cols = delta_RxC.shape[1]
  p = start_PxC.shape[0]
  kept = 2 * p
  m = kept + MAX_STEPS * p
  diagonal_MxM = np.eye(m, dtype=bool) & (np.arange(m) < kept)

  def step(i: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    v_MxC, t_MxM, x_PxC, _ = state
    v_MxC = jax.lax.dynamic_update_slice_in_dim(v_MxC, x_PxC, kept + i * p, 0)
    y_RxP = _dot('rc,pc->rp', delta_RxC, x_PxC) * scale  # this order: no copy of delta
    w_PxC = _dot('rp,rc->pc', y_RxP, delta_RxC) * scale
    t_PxM = _dot('pc,mc->pm', w_PxC, v_MxC)
    t_MxM = jax.lax.dynamic_update_slice_in_dim(t_MxM, t_PxM, kept + i * p, 0)
    t_MxM = jax.lax.dynamic_update_slice_in_dim(t_MxM, t_PxM.T, kept + i * p, 1)
    # B x of the longest x, within the basis: what is left below this is rounding. All
    # of B x would be too much: with a random x, new directions are most of it.
    least = NOISE * EPS * jnp.sqrt(jnp.max(_squares(t_PxM)))
    w_PxC = _project_out(w_PxC - _dot('pm,mc->pc', t_PxM, v_MxC), v_MxC)
    gram_PxP = _gram(w_PxC)
    x_PxC = _project_out(_orthonormal(w_PxC, gram_PxP, least), v_MxC)
    x_PxC = _orthonormal(x_PxC, _gram(x_PxC), 1e-3)
    return v_MxC, t_MxM, x_PxC, gram_PxP

  def cycle(basis: _Basis) -> _Basis:
    state = (basis.v_MxC, basis.t_MxM, basis.x_PxC, jnp.zeros((p, p)))
    n_steps = jnp.clip(MIN_STEPS * basis.cycle, MIN_STEPS, MAX_STEPS)
    v_MxC, t_MxM, x_PxC, gram_PxP = jax.lax.fori_loop(0, n_steps, step, state)
    s_MxM, theta_M = _eigh((t_MxM + t_MxM.T) / 2)
    theta_M, s_MxM = theta_M[::-1], s_MxM[:, ::-1]
    last_PxM = jax.lax.dynamic_slice_in_dim(s_MxM, kept + (n_steps - 1) * p, p)
    rho_M = jnp.sqrt(
      jnp.maximum(_dot('pm,pq,qm->m', last_PxM, gram_PxP, last_PxM), 0.0)
    )
    ritz_MxC = _dot('mj,mc->jc', s_MxM[:, :kept], v_MxC)
    v_MxC = jnp.pad(ritz_MxC, ((0, m - kept), (0, 0)))
    t_MxM = jnp.where(diagonal_MxM, theta_M, 0.0)
    settled = functools.reduce(
      operator.and_, (_is_settled(theta_M, rho_M, k) for k in ks)
    )
    return _Basis(v_MxC, t_MxM, x_PxC, basis.cycle + 1, settled)

  start = _Basis(
    v_MxC=jnp.zeros((m, n_cols)),
    t_MxM=jnp.zeros((m, m)),
    x_PxC=start_PxC,
    cycle=jnp.int32(0),
    settled=jnp.bool_(False),
  )
  basis = jax.lax.while_loop(
    lambda basis: (basis.cycle < MAX_CYCLES) & ~basis.settled, cycle, start
  )
  return _polish(delta_RxC, basis.v_MxC[:p], scale)


def _is_settled(theta_M: jax.Array, rho_M: jax.Array, k: int) -> jax.Array:
  """More cycles cannot help a head of rank k: good enough, or down at round-off."""
  error = _head_error(theta_M, rho_M, k)
  head = theta_M[:k].sum()
  residual = jnp.sqrt(jnp.clip((1.0 - head) / head, 0.0, 1.0))
  floor = EPS * theta_M[0]
  return ~((error > TOLERANCE * residual) & (jnp.max(rho_M[: k + 1]) > floor))


def _polish(delta_RxC: jax.Array, v_MxC: jax.Array, scale: jax.Array) -> Ritz:
  """Rayleigh-Ritz once more from clean products, and measured residuals."""
  v_MxC = 1.5 * v_MxC - 0.5 * _dot('mj,jc->mc', _gram(v_MxC), v_MxC)
  y_RxM = _dot('rc,mc->rm', delta_RxC, v_MxC)
  s_MxM, _ = _eigh(_gram((y_RxM * scale).T))
  s_MxM = s_MxM[:, ::-1]
  y_RxM, v_MxC = _dot('mj,rm->rj', s_MxM, y_RxM), _dot('mj,mc->jc', s_MxM, v_MxC)
  unit_RxM = y_RxM * scale
  theta_M = _squares(unit_RxM.T)  # small ones have digits here, as eigenvalues none
  w_MxC = _dot('rm,rc->mc', unit_RxM, delta_RxC) * scale
  rho_M = jnp.sqrt(_squares(w_MxC - theta_M[:, None] * v_MxC))
  return Ritz(y_RxM.T, v_MxC, theta_M, rho_M + MEASURED * EPS * theta_M[0])


def _project_out(w_PxC: jax.Array, v_MxC: jax.Array) -> jax.Array:
  return w_PxC - _dot('pm,mc->pc', _dot('pc,mc->pm', w_PxC, v_MxC), v_MxC)


def _orthonormal(
  w_PxC: jax.Array, gram_PxP: jax.Array, least: jax.Array | float
) -> jax.Array:
  """Rows spanning those of `w`; directions no longer than `least` become zero rows.

  `gram_PxP` is w w^T. It resolves directions down to sqrt(EPS) of the longest; the
  shorter ones are rotated apart and rescaled, but orthonormal only after a second call.
  """
  q_PxP, _ = _eigh(gram_PxP)
  w_PxC = _dot('pq,pc->qc', q_PxP, w_PxC)
  square_P = _squares(w_PxC)
  return w_PxC * jnp.where(square_P > least**2, jax.lax.rsqrt(square_P), 0.0)[:, None]


def _squares(w_PxC: jax.Array) -> jax.Array:
  """|w_p|^2, by a product: XLA compiles that in a fifth of the time of a reduction."""
  square_PxP = jnp.where(np.eye(len(w_PxC), dtype=bool), _gram(w_PxC), 0.0)
  return jnp.sum(square_PxP, axis=1)


def _gram(w_PxC: jax.Array) -> jax.Array:
  return _dot('pc,qc->pq', w_PxC, w_PxC)


def _eigh(gram_MxM: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(vectors in columns, values ascending); only the lower triangle is read."""
  return jax.lax.linalg.eigh(gram_MxM, symmetrize_input=False)
