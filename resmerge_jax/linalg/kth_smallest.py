"""Exact order statistics of magnitudes, by counting passes instead of a sort."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass, row_sums

INFINITY_BITS = 0x7F800000
STEPS = 31  # halvings of the patterns 0 .. INFINITY_BITS


def counts(true_list: Sequence[jax.Array]) -> jax.Array:
  """How many entries of each boolean RxC array are true, int32, in one fused pass.

  Rows are counted in float32, which is exact up to 2^24 columns and far faster than
  an integer reduction.
  """
  rows_list = row_sums([x.astype(jnp.float32) for x in true_list])
  return jnp.stack(rows_list).astype(jnp.int32).sum(1)


def kth_smallest(
  magnitudes: Callable[..., Sequence[jax.Array]], operands: Any, k_N: jax.Array
) -> jax.Array:
  """The k_n-th smallest number of the n-th of N arrays, float32; 0 for k_n = 0.

  `magnitudes(operands)` gives N float32 arrays RxC without negative numbers or NaN;
  infinity marks entries to leave out, of which the k-th smallest must be none. The
  patterns of such floats order as integers do, so bisection over them ends at the
  very number, ties or not. `operands` are read anew in every pass: nothing is kept.
  """

  def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low_N, high_N = bounds
    # One barrier for both: else XLA hoists the magnitudes out of the loop, into memory.
    stored, middle_N = another_pass(operands, low_N + (high_N - low_N) // 2)
    enough_N = k_N <= counts(
      [_bits(x) <= middle_N[i] for i, x in enumerate(magnitudes(stored))]
    )
    return (
      jnp.where(enough_N, low_N, middle_N + 1),
      jnp.where(enough_N, middle_N, high_N),
    )

  start = jnp.zeros_like(k_N), jnp.full_like(k_N, INFINITY_BITS)
  found_N, _ = jax.lax.fori_loop(0, STEPS, halve, start)
  return jax.lax.bitcast_convert_type(found_N, jnp.float32)


def _bits(x: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(x, jnp.int32)
