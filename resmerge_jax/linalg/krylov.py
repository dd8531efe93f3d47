"""Top-k singular triplets by a thick-restarted block Krylov iteration.

One matrix per call; callers vmap over experts and layers. The basis lives on the
column side: a step multiplies a block of P row vectors by `delta^T` and `delta`, so
with rows sharded over devices it needs all-reduces of P x P and P x C numbers. What the
matrix made of every row of the basis is kept, so the Ritz pairs and their residuals
cost no further pass over it. Theory: Golub & Van Loan, Matrix Computations, 10.4; Wu &
Simon, Thick-Restart Lanczos, SIAM J. Matrix Anal. Appl. 22 (2000).
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.head import (
  EPS,
  THIN,
  Head,
  Ritz,
  block_size,
  head_of,
  is_settled,
)
from resmerge_jax.linalg.orthonormal import (
  dot,
  eigh,
  gram,
  inner,
  orthonormal,
  project_out,
  reciprocal,
  squares,
  total_square,
  transposed,
)
from resmerge_jax.linalg.passes import (
  Formed,
  Matrix,
  block_rows,
  sampled_every,
  solves_in_blocks,
)

# Krylov steps before each Rayleigh-Ritz test. Well separated heads settle at the first;
# close spectra want longer chains. After 48 steps the host takes over.
FIRST_STEPS, LATER_STEPS = 5, (1, 2, 4, *[6] * 6)
KEPT = 3  # blocks of Ritz vectors that a restart keeps
# Matrices of more entries start from singular vectors of some of their rows:
# SAMPLE_STEPS steps on these cost less than one step and save two. A little of the
# random start stays, should these rows lack what is in others.
LARGE = 2**23
FIRST_STEPS_SAMPLED, SAMPLE_STEPS, SAMPLE_BLIND = 3, 2, 0.02
# Rounding, in units of EPS sigma_1^2: what an eigh of the whole Gram matrix leaves as
# residual; what a measured residual may miss. NOISE: length of d^T u, |u| = 1, where a new
# direction is only rounding, in units of EPS.
WHOLE_GRAM, MEASURED, NOISE = 8.0, 2.0, 8.0
# Rows of length 1 that get shorter than STILL_NEW without their part in the basis are not
# new, those that have less than APART for themselves tell nothing new: what rounding has
# left, stretched to length 1, would have more and more of the basis in it.
STILL_NEW, APART = 0.9, 0.2


class _Basis(NamedTuple):
  """Orthonormal rows, and their products with d = delta / ||delta||; unused rows are zero."""

  v_MxC: jax.Array
  y_MxR: jax.Array  # v d^T
  w_MxC: jax.Array  # v d^T d
  t_MxM: jax.Array  # v d^T d v^T
  new_PxC: jax.Array  # spans the next block of v, orthogonal to it; of d^T u, |u_p| = 1


class _State(NamedTuple):
  """After `cycle` Rayleigh-Ritz tests; the rows of the basis are Ritz vectors then."""

  basis: _Basis
  cycle: jax.Array
  settled: jax.Array


def is_large(n_rows: int, n_cols: int) -> bool:
  return n_rows * n_cols > LARGE


def cycle_steps(n_rows: int, n_cols: int) -> tuple[int, ...]:
  """Krylov steps of each cycle on a matrix of this shape; it may end after any of them."""
  sampled = is_large(n_rows, n_cols)
  return (FIRST_STEPS_SAMPLED if sampled else FIRST_STEPS, *LATER_STEPS)


def basis_rows(p: int) -> int:
  """M of the iteration with blocks of P rows."""
  return (KEPT + max(LATER_STEPS)) * p


def solver_bytes(n_rows: int, n_cols: int, k: int) -> int:
  """What solving one matrix keeps beside it: the basis, twice in its loops, and rows."""
  if min(n_rows, n_cols) <= THIN:
    return 0
  entries = 2 * basis_rows(block_size(k)) * (n_rows + 2 * n_cols)
  if is_large(n_rows, n_cols):
    entries += math.ceil(n_rows / sampled_every(n_rows)) * n_cols
  if solves_in_blocks(n_rows, n_cols):
    entries += block_rows(n_rows, n_cols) * n_cols
  return 4 * entries


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
  energy = total_square(delta_RxC)
  ritz = ritz_pairs(Formed(delta_RxC), ks, start_PxC, energy)
  return tuple(head_of(ritz, k, min(delta_RxC.shape), energy) for k in ks)


def ritz_pairs(
  matrix: Matrix, ks: tuple[int, ...], start_PxC: jax.Array, energy: jax.Array
) -> Ritz:
  """What `head_of` makes heads of these ranks of; `energy` is ||delta||^2.

  P is that of the largest rank. It ends when every head is good enough: that of a lower
  rank may have a narrower gap after it. Thin matrices must be formed.
  """
  short = min(matrix.shape)
  ks = tuple(min(k, short) for k in ks)
  scale = jnp.where(energy > 0, jax.lax.rsqrt(energy), 0.0)
  if short <= THIN:
    assert isinstance(matrix, Formed)
    p = min(block_size(max(ks)), short)
    ritz = _whole_space(matrix.delta_RxC, p, scale)
  else:
    ritz = _krylov(matrix, ks, start_PxC, scale)
  return ritz._replace(y_KxR=ritz.y_KxR[: max(ks)])


def _whole_space(delta_RxC: jax.Array, p: int, scale: jax.Array) -> Ritz:
  """All Ritz values of a thin matrix from the Gram matrix of its short side.

  The leading P pairs get vectors.
  """
  d_RxC = delta_RxC * scale
  if d_RxC.shape[0] >= d_RxC.shape[1]:
    s_CxM, theta_M = eigh(gram(transposed(d_RxC)))
    v_PxC = s_CxM[:, ::-1][:, :p].T
    y_PxR = dot('rc,pc->rp', delta_RxC, v_PxC).T
  else:
    s_RxM, theta_M = eigh(gram(d_RxC))
    u_PxR = s_RxM[:, ::-1][:, :p].T
    v_PxC = dot('pr,rc->pc', u_PxR, d_RxC)
    size_Px1 = jnp.linalg.norm(v_PxC, axis=1, keepdims=True)
    v_PxC = v_PxC * reciprocal(size_Px1)
    y_PxR = u_PxR * size_Px1 * reciprocal(scale)
  theta_M = jnp.maximum(theta_M[::-1], 0.0)
  theta_M = theta_M.at[:p].set(jnp.sum((y_PxR * scale) ** 2, axis=1))
  rho_M = jnp.full_like(theta_M, WHOLE_GRAM * EPS) * theta_M[0]
  return Ritz(y_PxR, v_PxC, theta_M, rho_M)


def _krylov(
  matrix: Matrix, ks: tuple[int, ...], start_PxC: jax.Array, scale: jax.Array
) -> Ritz:
  n_rows, n_cols = matrix.shape
  p = start_PxC.shape[0]
  steps = cycle_steps(n_rows, n_cols)
  kept = KEPT * p
  m = basis_rows(p)
  diagonal_MxM = np.eye(m, dtype=bool) & (np.arange(m) < kept)
  put = jax.lax.dynamic_update_slice_in_dim

  def step(i: int, basis: _Basis) -> _Basis:
    v_MxC, y_MxR, w_MxC, t_MxM, new_PxC = basis
    x_PxC = project_out(orthonormal(new_PxC, NOISE * EPS), v_MxC)
    is_new_P = squares(x_PxC) > STILL_NEW**2
    x_PxC = orthonormal(x_PxC * is_new_P[:, None], APART)
    x_PxC, y_PxR, w_PxC = matrix.there_and_back(x_PxC, scale)
    at = kept + i * p
    v_MxC, y_MxR, w_MxC = (
      put(of, block, at, 0)
      for of, block in ((v_MxC, x_PxC), (y_MxR, y_PxR), (w_MxC, w_PxC))
    )
    t_PxM = dot('pc,mc->pm', w_PxC, v_MxC)
    t_MxM = put(put(t_MxM, t_PxM, at, 0), t_PxM.T, at, 1)
    # Rows of |y_p| = 1: rounding is the same in all, however small what they hold.
    unit_Px1 = _per_length_of_y(w_PxC, x_PxC)
    new_PxC = w_PxC * unit_Px1 - dot('pm,mc->pc', t_PxM * unit_Px1, v_MxC)
    return _Basis(v_MxC, y_MxR, w_MxC, t_MxM, project_out(new_PxC, v_MxC))

  def cycle(state: _State) -> _State:
    basis = jax.lax.fori_loop(0, jnp.asarray(steps)[state.cycle], step, state.basis)
    s_MxM, theta_M = eigh((basis.t_MxM + basis.t_MxM.T) / 2)
    theta_M, s_MxK = theta_M[::-1], s_MxM[:, ::-1][:, :kept]
    s_KxM = transposed(s_MxK)
    v_KxC, y_KxR, w_KxC = (dot('km,mc->kc', s_KxM, of) for of in basis[:3])
    rho_K = jnp.sqrt(squares(w_KxC - theta_M[:kept, None] * v_KxC))
    settled = functools.reduce(
      operator.and_, (is_settled(theta_M, rho_K, k) for k in ks)
    )
    # 0 times the old rows: XLA compiles that in a third of the time of a padding.
    v_MxC, y_MxR, w_MxC = (
      put(0.0 * of, ritz, 0, 0)
      for of, ritz in zip(basis[:3], (v_KxC, y_KxR, w_KxC), strict=True)
    )
    t_MxM = jnp.where(diagonal_MxM, theta_M, 0.0)
    basis = _Basis(v_MxC, y_MxR, w_MxC, t_MxM, basis.new_PxC)
    return _State(basis, state.cycle + 1, settled)

  if is_large(n_rows, n_cols):
    start_PxC = _sampled_start(matrix.sample(), start_PxC, scale)
  start = _Basis(
    v_MxC=jnp.zeros((m, n_cols)),
    y_MxR=jnp.zeros((m, n_rows)),
    w_MxC=jnp.zeros((m, n_cols)),
    t_MxM=jnp.zeros((m, m)),
    new_PxC=start_PxC,
  )
  state = jax.lax.while_loop(
    lambda state: (state.cycle < len(steps)) & ~state.settled,
    cycle,
    _State(start, jnp.int32(0), jnp.bool_(False)),
  )
  v_PxC, y_PxR, w_PxC = (of[:p] for of in state.basis[:3])
  return _polished(v_PxC, y_PxR, w_PxC, scale)


def _per_length_of_y(w_PxC: jax.Array, x_PxC: jax.Array) -> jax.Array:
  """1 / |y_p| for y = x d^T and w = y d, Px1; 0 where y_p is only rounding.

  From |y_p|^2 = <w_p, x_p>, which devices that share the rows of y need not add up.
  """
  return reciprocal(jnp.sqrt(jnp.maximum(inner(w_PxC, x_PxC), 0.0)))[:, None]


def _sampled_start(
  sample_SxC: jax.Array, start_PxC: jax.Array, scale: jax.Array
) -> jax.Array:
  """Rows near the leading singular vectors of some rows of the matrix."""

  def step(_: int, x_PxC: jax.Array) -> jax.Array:
    x_PxC, _y, w_PxC = Formed(sample_SxC).there_and_back(x_PxC, scale)
    return orthonormal(w_PxC * _per_length_of_y(w_PxC, x_PxC), NOISE * EPS)

  x_PxC = jax.lax.fori_loop(0, SAMPLE_STEPS, step, start_PxC)
  return x_PxC + SAMPLE_BLIND * start_PxC


def _polished(
  v_PxC: jax.Array, y_PxR: jax.Array, w_PxC: jax.Array, scale: jax.Array
) -> Ritz:
  """The Ritz pairs with rows of v as orthonormal as float32 has them, in order again.

  Small values that the basis had at round-off of the first have digits as norms of y.
  """
  correction_PxP = 1.5 * jnp.eye(len(v_PxC)) - 0.5 * gram(v_PxC)
  y_PxR = dot('qp,pr->qr', correction_PxP, y_PxR)
  s_PxP = eigh(gram(y_PxR))[0][:, ::-1].T
  turn_PxP = dot('pq,qs->ps', s_PxP, correction_PxP)
  v_PxC, w_PxC = (dot('qp,pc->qc', turn_PxP, of) for of in (v_PxC, w_PxC))
  y_PxR = dot('qp,pr->qr', s_PxP, y_PxR)
  theta_P = squares(y_PxR)
  rho_P = jnp.sqrt(squares(w_PxC - theta_P[:, None] * v_PxC))
  return Ritz(
    y_PxR * reciprocal(scale), v_PxC, theta_P, rho_P + MEASURED * EPS * theta_P[0]
  )
