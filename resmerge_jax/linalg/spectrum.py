"""Whole spectra and polar factors from Gram matrices of the short side, in float64.

A Gram matrix squares the condition: a left vector X v / sigma comes out of it with an
error of about EPS (sigma_1 / sigma)^2. Where that is too much, `Blocks.triangle`
reduces X to a triangle (QR of one block after the other: Demmel et al., SIAM J. Sci.
Comput. 34, 2012), whose SVD is as accurate as that of X, whatever its length.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.short_side import RANK, Blocks, LongRows, gram

EPS = 2.0**-52
MAX_ERROR = 1e-6  # estimate above which a Gram matrix must not be used
GRAM_NOISE = 1e-7  # sigma / sigma_1, well above the root of EPS


class Spectrum(NamedTuple):
  """Leading singular values and right vectors of a matrix X, float64.

  Missing directions have zeros in `v` and `inverse`. `error` estimates the relative
  error of the left vectors X v inverse (root mean square over those that are there).
  """

  sigma_M: jax.Array  # descending
  v_SxM: jax.Array
  inverse_M: jax.Array  # 1 / sigma
  error: jax.Array

  @property
  def complete(self) -> jax.Array:
    """Whether no direction is missing."""
    return (self.inverse_M > 0).all()

  @property
  def growth(self) -> jax.Array:
    """sigma_1 over the smallest that is there."""
    return self.sigma_M.max(initial=0.0) * self.inverse_M.max(initial=0.0)

  @property
  def to_left(self) -> jax.Array:
    """SxM: X times it are the left vectors."""
    return self.v_SxM * self.inverse_M[..., None, :]

  @property
  def inverse_root(self) -> jax.Array:
    """(X^T X)^(-1/2), if all M = S directions were asked for: X times it is polar(X).

    Missing directions are left out, which gives the polar factor of least norm.
    """
    return self.to_left @ self.v_SxM.T


def spectrum(
  gram_SxS: jax.Array,
  exact: Callable[[], jax.Array],
  count: int,
  *,
  top: jax.Array | None = None,
  missing: jax.Array | float = RANK,
) -> Spectrum:
  """The `count` leading directions of X from X^T X, or by SVD where it is too coarse.

  Of `gram` only the lower triangle is read. `exact()` is X or a triangle of it. `top`
  is the size at which X was rounded, where that is not its own sigma_1. Directions up
  to `missing` times it are missing ones.
  """
  lambda_S, v_SxS = jnp.linalg.eigh(gram_SxS, symmetrize_input=False)
  sigma_S = jnp.sqrt(jnp.maximum(lambda_S[::-1], 0.0))
  top = sigma_S[0] if top is None else top
  from_gram = sigma_S[:count], v_SxS[:, ::-1][:, :count]

  def by_svd() -> tuple[jax.Array, jax.Array]:
    _, sigma_S, vt_SxS = jnp.linalg.svd(exact(), full_matrices=False)
    return sigma_S[:count], vt_SxS[:count].T

  # Of directions this small a Gram matrix tells no more than that they are missing.
  told = jnp.where(missing > GRAM_NOISE, missing * top, 0.0)
  wanted_M = jnp.where(from_gram[0] > told, from_gram[0], jnp.inf)
  coarse = _error(top, wanted_M, 2) > MAX_ERROR
  sigma_M, v_SxM = jax.lax.cond(coarse, by_svd, lambda: from_gram)
  found_M = sigma_M > missing * top
  error = _error(top, jnp.where(found_M, sigma_M, jnp.inf), jnp.where(coarse, 1, 2))
  inverse_M = jnp.where(found_M, 1.0 / jnp.where(found_M, sigma_M, 1.0), 0.0)
  return Spectrum(sigma_M, v_SxM * found_M, inverse_M, error)


def _error(top: jax.Array, sigma_M: jax.Array, power: jax.Array | int) -> jax.Array:
  """EPS (top / sigma)^power, root mean square; 0 for a matrix of zeros."""
  if not sigma_M.size:
    return jnp.float64(0)
  zero_M = sigma_M == 0
  ratio_M = jnp.where(zero_M, jnp.inf, top / jnp.where(zero_M, 1.0, sigma_M))
  error = EPS * jnp.sqrt(jnp.mean(ratio_M ** (2 * power)))
  return jnp.where(top > 0, error, 0.0)


def between_polars(
  blocks: Blocks,
  long: LongRows,
  short_SxM: jax.Array,
  sigma_M: jax.Array,
  error: jax.Array,
  growth: jax.Array,
  settled: tuple[int, int] = (0, 0),
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """polar(P) diag(sigma) polar(Q)^T for P LxM and Q SxM, turned back to RxC.

  `long` makes the rows of P. `error` is the relative error of the columns of P and Q:
  directions as weak as that are missing. `growth`: as of `Blocks.map`, for P. `settled`:
  how many of the last columns of P, and of Q, are orthonormal already, and orthogonal
  to those before them. Returns the matrix in float32, an estimate of its relative
  error, and whether P and Q have full rank.
  """
  free_p, free_q = (short_SxM.shape[1] - count for count in settled)
  find = functools.partial(spectrum, missing=jnp.maximum(RANK, 10 * error))

  def unsettled(x_NxBxS: jax.Array) -> jax.Array:
    return long(x_NxBxS)[:, :free_p]

  p = find(
    blocks.sum(lambda x_NxBxS: gram(unsettled(x_NxBxS))),
    lambda: blocks.triangle(unsettled),
    free_p,
  )
  free_SxM, settled_SxM = short_SxM[:, :free_q], short_SxM[:, free_q:]
  q = find(gram(free_SxM), lambda: free_SxM, free_q)
  polar_q_SxM = jnp.hstack([free_SxM @ q.inverse_root, settled_SxM])
  k_MxS = sigma_M[:, None] * polar_q_SxM.T
  k_MxS = jnp.vstack([p.inverse_root @ k_MxS[:free_p], k_MxS[free_p:]])
  update_RxC = blocks.map(
    lambda x_NxBxS: long(x_NxBxS) @ k_MxS.astype(x_NxBxS.dtype),
    growth * p.inverse_M.max(initial=0.0),
  )
  # An error of the columns grows as these are made orthonormal, by 1 / sigma.
  grown = error * sum(jnp.sqrt(jnp.mean(x.inverse_M**2)) for x in (p, q))
  return update_RxC, grown + p.error + q.error, p.complete & q.complete
