"""Heads H = sum_k y_k v_k^T of matrices, and how well they are known.

Error bounds: Parlett, The Symmetric Eigenvalue Problem, 11.7 (residual over gap).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

EPS = 2.0**-24  # unit round-off of float32
TOLERANCE = 1e-5  # wanted relative error of the head; stops ten times below MAX_ERROR
MAX_ERROR = 1e-4  # above this estimate a head must not be used
THIN = 64  # short sides up to this go through the whole Gram matrix
UNSEEN = 8 * EPS  # sigma^2, relative to sigma_1^2, that steps of the solver may not see
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


def block_size(k: int) -> int:
  """P: wide enough to see a cluster of up to three values below sigma_k."""
  return k + 3


def ritz_size(k: int, short: int) -> int:
  """M of `Head.ritz_MxC`."""
  return min(block_size(k), short)


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
  if k > 1 and short > THIN:  # as small a value may have been missed among rounding
    at_rounding = theta_M[k - 1] < UNSEEN * theta_M[0]
    error = jnp.where(at_rounding, jnp.maximum(error, UNSEEN**0.5), error)
  # More energy than there is: rounding has broken the basis.
  error = jnp.where(theta_M.sum() > 1 + 1e-3, jnp.inf, error)
  return Head(
    y_KxR=ritz.y_KxR[:k],
    v_KxC=ritz.v_PxC[:k],
    sigma_K=jnp.sqrt(theta_M[:k] * energy),
    sigma_next=jnp.sqrt(theta_next * energy),
    error=jnp.where(energy > 0, error + FLOOR, 0.0),
    certified=(energy == 0) | (short <= THIN) | (nothing_hidden & (error < jnp.inf)),
    ritz_MxC=ritz.v_PxC[: ritz_size(k, short)],
  )


def _head_error(theta_M: jax.Array, rho_M: jax.Array, k: int) -> jax.Array:
  """Relative Frobenius error of the rank-k head: residual over gap, per triplet.

  Values are relative to ||delta||^2. Rotations inside the head do no harm, so the
  gap that counts is the one to theta_{k+1}, lowered by what it may still grow.
  """
  gap_K = theta_M[:k] - theta_M[k] - rho_M[k]
  leak_K = jnp.where(gap_K > 0, rho_M[:k] / gap_K, jnp.inf)
  lost = jnp.sum(theta_M[:k] * jnp.minimum(leak_K, 1.0) ** 2)
  return jnp.sqrt(2 * lost / theta_M[:k].sum())


def is_settled(theta_M: jax.Array, rho_M: jax.Array, k: int) -> jax.Array:
  """More cycles cannot help a head of rank k: good enough, or down at round-off."""
  error = _head_error(theta_M, rho_M, k)
  head = theta_M[:k].sum()
  residual = jnp.sqrt(jnp.clip((1.0 - head) / head, 0.0, 1.0))
  floor = EPS * theta_M[0]
  return ~((error > TOLERANCE * residual) & (jnp.max(rho_M[: k + 1]) > floor))
