"""Inner products between experts in one pass over their matrices."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.orthonormal import dot
from resmerge_jax.linalg.products import (
  gram_of_products,
  less_heads,
  squares_of_sums_of_products,
)
from resmerge_jax.linalg.task_vectors import Products, TaskVectors

Matrices = TaskVectors | Products | jax.Array | Sequence[jax.Array]  # N matrices RxC


def gram(x_NxRxC: Matrices) -> jax.Array:
  """<X_i, X_j> for all pairs, NxN.

  One fused pass: all pair products are reduced along the columns together (one
  variadic reduction), then the row sums; two stages keep float32 sums accurate.
  """
  if isinstance(x_NxRxC, Products):
    return gram_of_products(x_NxRxC)
  n = len(x_NxRxC)
  pairs = [(i, j) for i in range(n) for j in range(i, n)]
  rows = row_sums([x_NxRxC[i] * x_NxRxC[j] for i, j in pairs])
  row_of = dict(zip(pairs, rows, strict=True))
  order = [(min(i, j), max(i, j)) for i in range(n) for j in range(n)]
  return jnp.stack([row_of[pair] for pair in order]).sum(1).reshape(n, n)


def squares_of_sums(x_NxRxC: Matrices, coefficients_SxN: jax.Array) -> jax.Array:
  """||sum_n s_n X_n||^2 for each row s: summed before squared, so nothing cancels."""
  if isinstance(x_NxRxC, Products):
    return squares_of_sums_of_products(x_NxRxC, coefficients_SxN)
  n = len(x_NxRxC)
  combined = [sum(s_N[i] * x_NxRxC[i] for i in range(n)) for s_N in coefficients_SxN]
  return sums([x * x for x in combined])


def sums(x_list: Sequence[jax.Array]) -> jax.Array:
  """Sum of each RxC array, in one fused pass over all of them."""
  return jnp.stack(row_sums(x_list)).sum(1)


def row_sums(x_list: Sequence[jax.Array]) -> Sequence[jax.Array]:
  """Sums along the columns, one variadic reduction: operands fuse into it.

  Reducing columns first keeps float32 accurate: over both axes at once the CPU
  backend loses up to 3 %.
  """
  return jax.lax.reduce(
    tuple(x_list),
    (jnp.float32(0),) * len(x_list),
    lambda x, y: tuple(a + b for a, b in zip(x, y, strict=True)),
    (1,),
  )


def another_pass(*operands: Any) -> Any:
  """The same arrays, hidden from XLA's sharing of subexpressions.

  Two passes that share an intermediate would make XLA keep it: for matrices, writing
  and reading it costs more than computing it twice inside the two fusions.
  """
  return jax.lax.optimization_barrier(operands)


def residual(
  delta_NxRxC: TaskVectors | Products | jax.Array, head: Head
) -> Products | list[jax.Array]:
  """R_i = D_i - H_i (paper, Eq. 6). Meant to fuse into its consumer, not to be kept.

  The head is subtracted term by term so that XLA can do it inside the reduction of
  `gram`: forming <R_i, R_j> from <D_i, D_j> would cancel when heads carry the energy.
  """
  if isinstance(delta_NxRxC, Products):
    return less_heads(delta_NxRxC, head)
  n, k, _ = head.y_KxR.shape
  out_NxRxC = [delta_NxRxC[i] for i in range(n)]
  for i in range(n):
    for t in range(k):
      out_NxRxC[i] -= head.y_KxR[i, t][:, None] * head.v_KxC[i, t][None, :]
  return out_NxRxC


def head_gram(head: Head) -> jax.Array:
  """<H_i, H_j> = sum_st (y_is . y_jt)(v_is . v_jt), NxN, from the triplets alone."""
  y_NxNxKxK = dot('nkr,mjr->nmkj', head.y_KxR, head.y_KxR)
  v_NxNxKxK = dot('nkc,mjc->nmkj', head.v_KxC, head.v_KxC)
  return (y_NxNxKxK * v_NxNxKxK).sum((2, 3))
