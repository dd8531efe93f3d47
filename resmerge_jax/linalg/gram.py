"""Inner products between experts in one pass over their matrices."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.krylov import PRECISION, Head


Deltas = Sequence[jax.Array]  # N arrays RxC: apart, each fuses into its consumer


def gram(x_NxRxC: Deltas) -> jax.Array:
  """<X_i, X_j> for all pairs, NxN.

  One fused pass: all pair products are reduced along the columns together (one
  variadic reduction), then the row sums; two stages keep float32 sums accurate.
  """
  n = len(x_NxRxC)
  pairs = [(i, j) for i in range(n) for j in range(i, n)]
  total = sums([x_NxRxC[i] * x_NxRxC[j] for i, j in pairs])
  at = {pair: t for t, pair in enumerate(pairs)}
  order = [at[min(i, j), max(i, j)] for i in range(n) for j in range(n)]
  return total[jnp.array(order)].reshape(n, n)


def norms_of_sums(x_NxRxC: Deltas, coefficients_SxN: jax.Array) -> jax.Array:
  """||sum_n s_n X_n|| for each row s: summed before squared, so nothing cancels."""
  combined = [
    sum(s * x for s, x in zip(s_N, x_NxRxC, strict=True)) for s_N in coefficients_SxN
  ]
  return jnp.sqrt(sums([x * x for x in combined]))


def sums(x_list: Sequence[jax.Array]) -> jax.Array:
  """Sum of each RxC array, in one fused pass over all of them.

  Two stages (columns, then rows) keep float32 accurate: one variadic reduction over
  both axes at once loses up to 3 % on the CPU backend.
  """
  rows = jax.lax.reduce(
    tuple(x_list),
    (jnp.float32(0),) * len(x_list),
    lambda x, y: tuple(a + b for a, b in zip(x, y, strict=True)),
    (1,),
  )
  return jnp.stack([row_R.sum() for row_R in rows])


def residual(delta_NxRxC: Deltas, head: Head) -> list[jax.Array]:
  """R_i = D_i - H_i (paper, Eq. 6). Meant to fuse into its consumer, not to be kept.

  The head is subtracted term by term so that XLA can do it inside the reduction of
  `gram`: forming <R_i, R_j> from <D_i, D_j> would cancel when heads carry the energy.
  """
  return [
    d_RxC
    - sum(y_R[:, None] * v_C[None, :] for y_R, v_C in zip(y_KxR, v_KxC, strict=True))
    for d_RxC, y_KxR, v_KxC in zip(delta_NxRxC, head.y_KxR, head.v_KxC, strict=True)
  ]


def head_gram(head: Head) -> jax.Array:
  """<H_i, H_j> = sum_st (y_is . y_jt)(v_is . v_jt), NxN, from the triplets alone."""
  y_NxNxKxK = jnp.einsum('nkr,mjr->nmkj', head.y_KxR, head.y_KxR, precision=PRECISION)
  v_NxNxKxK = jnp.einsum('nkc,mjc->nmkj', head.v_KxC, head.v_KxC, precision=PRECISION)
  return (y_NxNxKxK * v_NxNxKxK).sum((2, 3))
