"""The k entries of largest magnitude, exactly, without sorting.

Bits of non-negative float32 numbers, read as integers, are in the order of the
numbers. So the k-th largest magnitude of a matrix is found by bisecting 31-bit integers,
where a question (how many entries are at least this) is one fused pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass, row_sums
from resmerge_jax.linalg.task_vectors import TaskVectors, widen

WAYS = 4  # parts into which a pass cuts the interval: 2, 3, 8 and 16 are slower (CPU)
ABOVE_ALL = 0x7F800000  # bits of infinity


class Cut(NamedTuple):
  """What is kept of each of N matrices: see `kept`. All int32."""

  bits_N: jax.Array
  row_N: jax.Array
  col_N: jax.Array


def magnitude_bits(x: jax.Array) -> jax.Array:
  """Bits of |x| for float32 x, int32: ordered as |x|."""
  return jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)


def kept(cut: Cut, i: int, x_RxC: jax.Array) -> jax.Array:
  """Where the magnitude of matrix i is above the cut's, or equal and not after its place.

  Places are in row-major order, so of equal magnitudes the first are kept.
  """
  bits_RxC = magnitude_bits(x_RxC)
  row_RxC = jax.lax.broadcasted_iota(jnp.int32, x_RxC.shape, 0)
  col_RxC = jax.lax.broadcasted_iota(jnp.int32, x_RxC.shape, 1)
  row, col = cut.row_N[i], cut.col_N[i]
  early_RxC = (row_RxC < row) | ((row_RxC == row) & (col_RxC <= col))
  equal_RxC = bits_RxC == cut.bits_N[i]
  return (bits_RxC > cut.bits_N[i]) | (equal_RxC & early_RxC)


def largest(delta_NxRxC: TaskVectors, k: int) -> Cut:
  """The cut that keeps exactly the k largest magnitudes of each D_i, 0 <= k <= R * C."""
  n = len(delta_NxRxC)
  nowhere_N = jnp.full(n, -1, jnp.int32)
  if k == 0:
    return Cut(jnp.full(n, ABOVE_ALL, jnp.int32), nowhere_N, nowhere_N)
  bits_N = kth_largest(delta_NxRxC, k)
  x_NxRxC, bits_N = another_pass(delta_NxRxC, bits_N)
  found_NxRxC = [magnitude_bits(x_NxRxC[i]) for i in range(n)]
  counts_XxR = counts_of_rows(
    [found_NxRxC[i] > bits_N[i] for i in range(n)]
    + [found_NxRxC[i] == bits_N[i] for i in range(n)]
  )
  wanted_N = k - counts_XxR[:n].sum(1)  # of the equal ones, at least one
  equal_NxR = counts_XxR[n:]
  until_NxR = jnp.cumsum(equal_NxR, 1)
  row_N = (until_NxR < wanted_N[:, None]).sum(1, dtype=jnp.int32)
  wanted_N -= jnp.where(
    jnp.arange(equal_NxR.shape[1]) < row_N[:, None], equal_NxR, 0
  ).sum(1)
  equal_NxC = magnitude_bits(_rows(delta_NxRxC, row_N)) == bits_N[:, None]
  until_NxC = jnp.cumsum(equal_NxC.astype(jnp.int32), 1)
  col_N = (until_NxC < wanted_N[:, None]).sum(1, dtype=jnp.int32)
  return Cut(bits_N, row_N, col_N)


def kth_largest(delta_NxRxC: TaskVectors, k: int) -> jax.Array:
  """Bits of the k-th largest magnitude of each D_i, int32 of shape N; 1 <= k <= R * C.

  Sixteen counting passes over finite entries (two bits each).
  """
  n = len(delta_NxRxC)
  part = jnp.arange(1, WAYS, dtype=jnp.int32)

  def narrowed(between: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low_N, high_N = between  # at least k entries reach low, fewer reach high
    x_NxRxC, low_N = another_pass(delta_NxRxC, low_N)  # nothing is kept between passes
    step_N = -(-(high_N - low_N) // WAYS)
    bits_NxT = jnp.minimum(low_N[:, None] + step_N[:, None] * part, high_N[:, None])
    count_XxR = counts_of_rows(
      [
        magnitude_bits(x_NxRxC[i]) >= bits_NxT[i, t]
        for i in range(n)
        for t in range(WAYS - 1)
      ]
    )
    enough_NxT = count_XxR.sum(1).reshape(n, WAYS - 1) >= k
    low_N = jnp.where(enough_NxT, bits_NxT, low_N[:, None]).max(1)
    return low_N, jnp.where(enough_NxT, high_N[:, None], bits_NxT).min(1)

  start = jnp.zeros(n, jnp.int32), jnp.full(n, ABOVE_ALL, jnp.int32)
  return jax.lax.while_loop(
    lambda between: jnp.any(between[1] - between[0] > 1), narrowed, start
  )[0]


def counts_of_rows(conditions: list[jax.Array]) -> jax.Array:
  """How often each RxC condition holds in each row, int32, stacked."""
  # float32 counts are exact up to 2^24 columns, and integer reductions are slow
  return jnp.stack(row_sums([c.astype(jnp.float32) for c in conditions])).astype(
    jnp.int32
  )


def _rows(delta_NxRxC: TaskVectors, row_N: jax.Array) -> jax.Array:
  """Row row_N[i] of each D_i, NxC."""
  base_NxC = delta_NxRxC.base_RxC[row_N]
  experts_NxC = delta_NxRxC.experts_NxRxC[jnp.arange(len(delta_NxRxC)), row_N]
  return widen(experts_NxC) - widen(base_NxC)
