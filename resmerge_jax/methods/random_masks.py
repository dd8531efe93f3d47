"""Random masks that depend on the expert's key and the entry's place alone."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import row_sums
from resmerge_jax.linalg.order_statistic import differences
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context
from resmerge_jax.methods.sign_election import masked

RANGE = 2.0**32  # of the random numbers, uint32


def row_bits(key_2: jax.Array, row_start: jax.Array, rows: int, cols: int) -> jax.Array:
  """Uniform uint32, RxC: row r is drawn from the key folded with row_start + r."""
  key = jax.random.wrap_key_data(key_2, impl='threefry2x32')

  def of_row(row: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(key, row), (cols,), jnp.uint32)

  return jax.vmap(of_row)(row_start + jnp.arange(rows))


def drop_masks(context: Context, rows: int, cols: int, density: float) -> jax.Array:
  """Bernoulli(density) for each expert and entry, NxRxC: True stays."""
  below = jnp.uint32(min(round(density * RANGE), RANGE - 1))
  # One expert after the other: drawing takes ten times the memory of its mask.
  drawn_NxRxC = jax.lax.map(
    lambda key_2: row_bits(key_2, context.row_start, rows, cols) < below,
    context.keys_Nx2,
  )
  # Drawn once: that costs more than all else here.
  return jax.lax.optimization_barrier(drawn_NxRxC)


def l1_ratio(delta_NxRxC: TaskVectors, masks_NxRxC: Sequence[jax.Array]) -> jax.Array:
  """||D_i||_1 / ||m_i D_i||_1, and 1 where nothing is left.

  mergekit also leaves tensors alone whose sum of magnitudes is below 1e-7.
  """
  n = len(delta_NxRxC)
  size_NxRxC = [jnp.abs(x_RxC) for x_RxC in differences(delta_NxRxC)]
  sums_XxR = jnp.stack(row_sums([*size_NxRxC, *masked(masks_NxRxC, size_NxRxC)]))
  before_N, after_N = sums_XxR.sum(1).reshape(2, n)
  return jnp.where(after_N > 0, before_N / jnp.where(after_N > 0, after_N, 1.0), 1.0)
