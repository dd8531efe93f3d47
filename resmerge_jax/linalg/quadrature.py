"""Entropy of a spectrum: whole from a Gram matrix, or estimated by Lanczos quadrature.

p_j = sigma_j^2 / sum sigma^2 are the shares of energy, H = -sum p log p. The estimate is
stochastic Lanczos quadrature (Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38, 2017)
for the trace of f(A), f(x) = -x log x, with the leading vectors projected out first and
the known trace of A as control variate. Devices make the tridiagonal matrices, the host
the rest, in float64.

V is the number of probes, M of Lanczos steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.orthonormal import dot, gram, total_square, transposed

EXACT_SIDE = 1024  # short sides up to this get their whole spectrum
PROBES, STEPS = 8, 32
TINY = 1e-4  # relative length of a new Lanczos vector that is only rounding


class Entropy(NamedTuple):
  """H in nats, and its standard error (0: exact but for rounding)."""

  value: float
  error: float


def spectrum(delta_RxC: jax.Array) -> jax.Array:
  """p_j of all singular values, descending, of a float32 matrix; zeros if it is zero."""
  d_RxC = delta_RxC * _scale(delta_RxC)
  wide = d_RxC.shape[0] < d_RxC.shape[1]
  gram_SxS = gram(d_RxC if wide else transposed(d_RxC))
  return jnp.maximum(jnp.linalg.eigvalsh(gram_SxS)[::-1], 0.0)


def tridiagonals(delta_RxC: jax.Array, v_KxC: jax.Array) -> dict[str, jax.Array]:
  """Lanczos of D^T D / ||D||^2 beside the rows `v_KxC`, from random signs.

  Returns diagonals VxM, off-diagonals VxM (the last one unused) and the squared
  lengths V of the starts. Every vector is made orthogonal to all before it.
  """
  n_cols = delta_RxC.shape[1]
  signs = np.random.default_rng(n_cols).integers(0, 2, (PROBES, n_cols))
  scale = _scale(delta_RxC)

  def beside(x_VxC: jax.Array) -> jax.Array:
    return x_VxC - dot('vk,kc->vc', dot('vc,kc->vk', x_VxC, v_KxC), v_KxC)

  def apart(w_VxC: jax.Array, q_VxMxC: jax.Array) -> jax.Array:
    along_VxM = dot('vc,vmc->vm', w_VxC, q_VxMxC)
    return beside(w_VxC - dot('vm,vmc->vc', along_VxM, q_VxMxC))

  def step(m: int, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    q_VxMxC, x_VxC, diagonal_VxM, beside_VxM = state
    q_VxMxC = jax.lax.dynamic_update_index_in_dim(q_VxMxC, x_VxC, m, 1)
    y_VxR = transposed(dot('rc,vc->rv', delta_RxC, x_VxC) * scale)
    w_VxC = dot('vr,rc->vc', y_VxR, delta_RxC) * scale
    a_V = (y_VxR * y_VxR).sum(1)
    w_VxC = apart(apart(w_VxC, q_VxMxC), q_VxMxC)
    b_V = jnp.linalg.norm(w_VxC, axis=1)
    # What is left of an exhausted space is rounding: the chain ends.
    b_V = jnp.where(b_V > TINY * a_V, b_V, 0.0)
    x_VxC = w_VxC * jnp.where(b_V > 0, 1 / jnp.where(b_V > 0, b_V, 1.0), 0.0)[:, None]
    return (
      q_VxMxC, x_VxC, diagonal_VxM.at[:, m].set(a_V), beside_VxM.at[:, m].set(b_V),
    )  # fmt: skip

  z_VxC = beside(jnp.asarray(2 * signs - 1, jnp.float32))
  square_V = (z_VxC * z_VxC).sum(1)
  x_VxC = z_VxC * jnp.where(square_V > 0, jax.lax.rsqrt(square_V), 0.0)[:, None]
  none_VxM = jnp.zeros((PROBES, STEPS))
  basis_VxMxC = jnp.zeros((PROBES, STEPS, n_cols))
  state = (basis_VxMxC, x_VxC, none_VxM, none_VxM)
  _, _, diagonal_VxM, beside_VxM = jax.lax.fori_loop(0, STEPS, step, state)
  return {'diagonal_VxM': diagonal_VxM, 'beside_VxM': beside_VxM, 'square_V': square_V}


def entropy_of(p_S: np.ndarray) -> Entropy:
  """Of a whole spectrum; shares that do not sum to 1 are divided by their sum."""
  p_S = np.asarray(p_S, np.float64)
  p_S = p_S[p_S > 0] / max(p_S.sum(), np.finfo(np.float64).tiny)
  return Entropy(float(-(p_S * np.log(p_S)).sum()), 0.0)


def entropy_beside(
  diagonal_VxM: np.ndarray, beside_VxM: np.ndarray, square_V: np.ndarray, share: float
) -> Entropy:
  """-sum p log p over the spectrum that `tridiagonals` saw, where sum p = `share`.

  The error joins the spread of the probes and what the last quarter of the steps
  changed.
  """
  value, error = _estimate(diagonal_VxM, beside_VxM, square_V, share)
  fewer = 3 * diagonal_VxM.shape[1] // 4
  before, _ = _estimate(diagonal_VxM[:, :fewer], beside_VxM[:, :fewer], square_V, share)
  return Entropy(value, float(np.hypot(error, value - before)))


def _estimate(
  diagonal_VxM: np.ndarray, beside_VxM: np.ndarray, square_V: np.ndarray, share: float
) -> tuple[float, float]:
  theta_VxM, vectors_VxMxM = np.linalg.eigh(_matrices(diagonal_VxM, beside_VxM))
  weight_VxM = np.asarray(square_V, np.float64)[:, None] * vectors_VxMxM[:, 0] ** 2
  log_VxM = np.log(np.maximum(theta_VxM, np.finfo(np.float64).tiny))
  theta_VxM = np.maximum(theta_VxM, 0.0)
  trace_V = (weight_VxM * theta_VxM).sum(1)
  entropy_V = -(weight_VxM * theta_VxM * log_VxM).sum(1)
  squares = (weight_VxM * theta_VxM**2).sum()
  # f - c x has the least spread over the probes: its coefficient of x in f.
  c = -(weight_VxM * theta_VxM**2 * log_VxM).sum() / squares if squares > 0 else 0.0
  of_probe_V = entropy_V - c * (trace_V - share)
  error = of_probe_V.std(ddof=1) / np.sqrt(len(of_probe_V))
  return float(of_probe_V.mean()), float(error)


def _matrices(diagonal_VxM: np.ndarray, beside_VxM: np.ndarray) -> np.ndarray:
  n_steps = diagonal_VxM.shape[1]
  at = np.arange(n_steps)
  found_VxMxM = np.zeros((len(diagonal_VxM), n_steps, n_steps))
  found_VxMxM[:, at, at] = diagonal_VxM
  found_VxMxM[:, at[1:], at[:-1]] = beside_VxM[:, : n_steps - 1]
  return found_VxMxM  # eigh reads the lower triangle


def _scale(delta_RxC: jax.Array) -> jax.Array:
  """1 / ||D||, 0 for a zero matrix."""
  energy = total_square(delta_RxC)
  return jnp.where(energy > 0, jax.lax.rsqrt(jnp.where(energy > 0, energy, 1.0)), 0.0)
