"""Heads, inner products and norms of products left_i right_i, from the factors alone.

D = left right = Y Q with Q of orthonormal rows (QR of right^T) and Y = left L: Y has the
singular values and left vectors of D, at F columns instead of C. Everything is
computed from Y, so that factors much larger than their product cost no digits.
"""

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.krylov import top_ks
from resmerge_jax.linalg.orthonormal import dot
from resmerge_jax.linalg.task_vectors import Products


def orthonormal(x_NxRxC: Products) -> Products:
  """The same products with orthonormal rows on the right, min(F, C) of them."""
  q_NxCxM, r_NxMxF = jnp.linalg.qr(x_NxRxC.right_NxFxC.swapaxes(1, 2))
  y_NxRxM = dot('nrf,nmf->nrm', x_NxRxC.left_NxRxF, r_NxMxF)
  return Products(x_NxRxC.base_RxC, y_NxRxM, q_NxCxM.swapaxes(1, 2))


def heads(
  x_NxRxC: Products, ks: tuple[int, ...], start_PxC: jax.Array, n_wanted: int
) -> list[tuple[Head, ...]]:
  """`top_ks` of each product, of the same shapes; empty directions have sigma 0.

  Args:
    n_wanted: triplets that the shapes ask for: those of the host's start.
  """
  lacking = max(n_wanted - x_NxRxC.right_NxFxC.shape[1], 0)
  x_NxRxC = orthonormal(
    Products(
      x_NxRxC.base_RxC,
      jnp.pad(x_NxRxC.left_NxRxF, ((0, 0), (0, 0), (0, lacking))),
      jnp.pad(x_NxRxC.right_NxFxC, ((0, 0), (0, lacking), (0, 0))),
    )
  )
  found = []
  for y_RxF, q_FxC in zip(x_NxRxC.left_NxRxF, x_NxRxC.right_NxFxC, strict=True):
    of_ranks = top_ks(y_RxF, ks, _start(start_PxC, len(q_FxC)))
    found.append(tuple(_with_columns(head, q_FxC) for head in of_ranks))
  return found


def _with_columns(head: Head, q_FxC: jax.Array) -> Head:
  """The head of Y Q from that of Y."""
  rest = {
    field: dot('kf,fc->kc', getattr(head, field), q_FxC)
    for field in ('v_KxC', 'ritz_MxC')
  }
  return head._replace(**rest)


def _start(start_PxC: jax.Array, n_cols: int) -> jax.Array:
  """Random orthonormal rows of `n_cols` columns; those that cannot be are zeros."""
  rows_XxF = jnp.linalg.qr(start_PxC[:, :n_cols].T)[0].T
  return jnp.zeros((len(start_PxC), n_cols)).at[: len(rows_XxF)].set(rows_XxF)


def less_heads(x_NxRxC: Products, head: Head) -> Products:
  """R_i = D_i - H_i = D_i (1 - V^T V): again products, without cancellation."""
  x_NxRxC = orthonormal(x_NxRxC)
  v_NxKxF = dot('nkc,nfc->nkf', head.v_KxC, x_NxRxC.right_NxFxC)
  along_NxRxK = dot('nrf,nkf->nrk', x_NxRxC.left_NxRxF, v_NxKxF)
  left_NxRxF = x_NxRxC.left_NxRxF - dot('nrk,nkf->nrf', along_NxRxK, v_NxKxF)
  return Products(x_NxRxC.base_RxC, left_NxRxF, x_NxRxC.right_NxFxC)


def gram_of_products(x_NxRxC: Products) -> jax.Array:
  """<D_i, D_j>, NxN."""
  x_NxRxC = orthonormal(x_NxRxC)
  left_NxNxFxF = dot('irf,jrg->ijfg', x_NxRxC.left_NxRxF, x_NxRxC.left_NxRxF)
  right_NxNxFxF = dot('ifc,jgc->ijfg', x_NxRxC.right_NxFxC, x_NxRxC.right_NxFxC)
  return (left_NxNxFxF * right_NxNxFxF).sum((2, 3))


def squares(x_NxRxC: Products) -> jax.Array:
  """||D_i||^2, N."""
  return (orthonormal(x_NxRxC).left_NxRxF ** 2).sum(2).sum(1)


def squares_of_sums_of_products(
  x_NxRxC: Products, coefficients_SxN: jax.Array
) -> jax.Array:
  """||sum_n s_n D_n||^2 for each row s: summed before squared, as one wider product."""
  n, n_rows, f = x_NxRxC.left_NxRxF.shape
  right_XxC = x_NxRxC.right_NxFxC.reshape(1, n * f, -1)

  def square(s_N: jax.Array) -> jax.Array:
    scaled_NxRxF = s_N[:, None, None] * x_NxRxC.left_NxRxF
    left_RxX = scaled_NxRxF.swapaxes(0, 1).reshape(1, n_rows, n * f)
    return squares(Products(x_NxRxC.base_RxC, left_RxX, right_XxC))[0]

  return jnp.stack([square(s_N) for s_N in coefficients_SxN])


def counts(x_NxRxC: Products) -> jax.Array:
  """Entries in a row of left and a column of right that are not all zero, N, int32."""
  rows_N = (x_NxRxC.left_NxRxF != 0).any(2).sum(1, dtype=jnp.int32)
  return rows_N * (x_NxRxC.right_NxFxC != 0).any(1).sum(1, dtype=jnp.int32)


def combined(a_N: jax.Array, x_NxRxC: Products) -> jax.Array:
  """sum_i a_i D_i, RxC: the one place where such a matrix is formed."""
  left_NxRxF = a_N[:, None, None] * x_NxRxC.left_NxRxF
  return dot('nrf,nfc->rc', left_NxRxF, x_NxRxC.right_NxFxC)
