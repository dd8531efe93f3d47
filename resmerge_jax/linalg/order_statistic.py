"""The k entries of largest magnitude, exactly, without sorting.

Bits of non-negative float32 numbers, read as integers, are in the order of the
numbers. So the k-th largest magnitude of a matrix is found by bisecting 31-bit integers,
where a question (how many entries are at least this) is one fused pass.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass, row_sums
from resmerge_jax.linalg.task_vectors import TaskVectors

WAYS = 4  # parts into which a pass cuts the interval: 2, 3, 8 and 16 are slower (CPU)
ABOVE_ALL = 0x7F800000  # bits of infinity


class Cut(NamedTuple):
  """What is kept of each of X matrices: see `kept`. All int32."""

  bits_X: jax.Array
  row_X: jax.Array
  col_X: jax.Array


Count = int | jax.Array


def differences(delta_NxRxC: TaskVectors) -> list[jax.Array]:
  """The D_i."""
  return [delta_NxRxC[i] for i in range(len(delta_NxRxC))]


Matrices = Callable[[TaskVectors], Sequence[jax.Array]]


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
  row, col = cut.row_X[i], cut.col_X[i]
  early_RxC = (row_RxC < row) | ((row_RxC == row) & (col_RxC <= col))
  equal_RxC = bits_RxC == cut.bits_X[i]
  return (bits_RxC > cut.bits_X[i]) | (equal_RxC & early_RxC)


def largest(
  delta_NxRxC: TaskVectors, k: Count, matrices: Matrices = differences
) -> Cut:
  """The cut that keeps exactly the k largest magnitudes of each matrix, 0 <= k <= R * C.

  `matrices`: which, entry by entry functions of the task vectors; the D_i themselves
  if not given. `k` is one number, also a traced one.
  """
  bits_X = kth_largest(delta_NxRxC, k, matrices)
  here_NxRxC, bits_X = another_pass(delta_NxRxC, bits_X)
  found = [magnitude_bits(x_RxC) for x_RxC in matrices(here_NxRxC)]
  n = len(found)
  counts_YxR = counts_of_rows(
    [bits_RxC > bits for bits_RxC, bits in zip(found, bits_X, strict=True)]
    + [bits_RxC == bits for bits_RxC, bits in zip(found, bits_X, strict=True)]
  )
  wanted_X = k - counts_YxR[:n].sum(1)  # of the equal ones
  equal_XxR = counts_YxR[n:]
  row_X = (jnp.cumsum(equal_XxR, 1) < wanted_X[:, None]).sum(1, dtype=jnp.int32)
  above_XxR = jnp.arange(equal_XxR.shape[1]) < row_X[:, None]
  wanted_X -= jnp.where(above_XxR, equal_XxR, 0).sum(1)
  equal_XxC = jnp.stack(
    [
      magnitude_bits(matrices(_row(delta_NxRxC, row_X[i]))[i][0]) == bits_X[i]
      for i in range(n)
    ]
  )
  until_XxC = jnp.cumsum(equal_XxC.astype(jnp.int32), 1)
  col_X = (until_XxC < wanted_X[:, None]).sum(1, dtype=jnp.int32)
  return Cut(bits_X, row_X, jnp.where(wanted_X > 0, col_X, -1))


def kth_largest(
  delta_NxRxC: TaskVectors, k: Count, matrices: Matrices = differences
) -> jax.Array:
  """Bits of the k-th largest magnitude of each of `matrices`, int32; ABOVE_ALL for k = 0.

  Sixteen counting passes over finite entries (two bits each).
  """
  part = jnp.arange(1, WAYS, dtype=jnp.int32)

  def narrowed(between: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low_X, high_X = between  # at least k entries reach low, fewer reach high
    here_NxRxC, low_X = another_pass(delta_NxRxC, low_X)  # nothing is kept in between
    step_X = -(-(high_X - low_X) // WAYS)
    bits_XxT = jnp.minimum(low_X[:, None] + step_X[:, None] * part, high_X[:, None])
    count_YxR = counts_of_rows(
      [
        magnitude_bits(x_RxC) >= bits
        for x_RxC, bits_T in zip(matrices(here_NxRxC), bits_XxT, strict=True)
        for bits in bits_T
      ]
    )
    enough_XxT = count_YxR.sum(1).reshape(bits_XxT.shape) >= k
    low_X = jnp.where(enough_XxT, bits_XxT, low_X[:, None]).max(1)
    return low_X, jnp.where(enough_XxT, high_X[:, None], bits_XxT).min(1)

  n = len(jax.eval_shape(matrices, delta_NxRxC))
  start = jnp.zeros(n, jnp.int32), jnp.full(n, ABOVE_ALL, jnp.int32)
  low_X, _ = jax.lax.while_loop(
    lambda between: jnp.any(between[1] - between[0] > 1), narrowed, start
  )
  return jnp.where(jnp.asarray(k) > 0, low_X, ABOVE_ALL)


def counts_of_rows(conditions: list[jax.Array]) -> jax.Array:
  """How often each RxC condition holds in each row, int32, stacked."""
  # float32 counts are exact up to 2^24 columns, and integer reductions are slow
  return jnp.stack(row_sums([c.astype(jnp.float32) for c in conditions])).astype(
    jnp.int32
  )


def _row(delta_NxRxC: TaskVectors, row: jax.Array) -> TaskVectors:
  """One row of the task vectors. A gather: a slice would bring all rows together."""
  return dataclasses.replace(
    delta_NxRxC,
    base_RxC=jnp.take(delta_NxRxC.base_RxC, row[None], 0, mode='clip'),
    experts_NxRxC=jnp.take(delta_NxRxC.experts_NxRxC, row[None], 1, mode='clip'),
  )
