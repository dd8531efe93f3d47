"""DELLA: drop entries at random, small ones more often (MAGPRUNE), then merge.

Deep et al. 2024, arXiv 2406.11617, Sec. 3, as in mergekit 0.1.5: within each row the
probability to stay rises evenly with the rank of the magnitude, from density - epsilon to
density + epsilon; then the tensor is rescaled to the sum of magnitudes it had. (The
paper divides each entry by its own probability.) Ranks take two sorts of every row: the
slowest of the element-wise methods.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.order_statistic import differences, magnitude_bits
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.methods.random_masks import RANGE, l1_ratio, row_bits
from resmerge_jax.methods.sign_election import merge_masked
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class Della:
  """`density`: mean probability to stay. `epsilon`: how far it varies with the rank.

  `elect`: elect a sign per entry and average what agrees (mergekit's `della`); otherwise
  all are summed (`della_linear`). `scale`: lambda.
  """

  density: float = 0.5
  epsilon: float = 0.15
  elect: bool = True
  scale: float = 1.0

  def __post_init__(self) -> None:
    inside = 0 < self.density - self.epsilon <= self.density + self.epsilon < 1
    check_params(
      'della',
      self,
      density=(0 <= self.density <= 1, 'a number from 0 to 1'),
      epsilon=(
        self.epsilon >= 0 and (inside or self.density in (0, 1)),
        'density - epsilon and density + epsilon between 0 and 1',
      ),
      elect=(isinstance(self.elect, bool), 'True or False'),
      scale=(math.isfinite(self.scale), 'a finite number'),
    )


def stay_masks(delta_NxRxC: TaskVectors, context: Context, params: Della) -> jax.Array:
  """True stays, NxRxC. Of equal magnitudes the first has the lowest rank."""
  rows, cols = delta_NxRxC.shape

  def of_expert(given: tuple[jax.Array, jax.Array]) -> jax.Array:
    key_2, expert_RxC = given
    bits_RxC = magnitude_bits(delta_NxRxC.difference(expert_RxC))
    rank_RxC = _order(_order(bits_RxC)).astype(jnp.float32)
    height_RxC = rank_RxC / (cols - 1) if cols > 1 else jnp.full_like(rank_RxC, 0.5)
    chance_RxC = params.density + params.epsilon * (2 * height_RxC - 1)
    below_RxC = (chance_RxC * RANGE).astype(jnp.uint32)
    return row_bits(key_2, context.row_start, rows, cols) < below_RxC

  # One expert after the other, and once: see `drop_masks`.
  stays_NxRxC = jax.lax.map(of_expert, (context.keys_Nx2, delta_NxRxC.experts_NxRxC))
  return jax.lax.optimization_barrier(stays_NxRxC)


def _order(key_RxC: jax.Array) -> jax.Array:
  """Columns of each row by rising key, of equal keys the first one first.

  Key and column go into one number of 64 bits: XLA:CPU sorts single numbers ten times
  as fast as pairs.
  """
  with jax.enable_x64(True):
    column_RxC = jax.lax.broadcasted_iota(jnp.uint64, key_RxC.shape, 1)
    both_RxC = key_RxC.astype(jnp.uint64) << 32 | column_RxC
    return (jax.lax.sort(both_RxC, dimension=1) & 0xFFFFFFFF).astype(jnp.uint32)


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: Della,
) -> tuple[Dense, Stats]:
  """scale * sum of the w_i x_i, or the mean of those that agree with the sign."""
  if params.density in (0, 1):
    shape = len(delta_NxRxC), *delta_NxRxC.shape
    masks_NxRxC = jnp.full(shape, params.density == 1)
  else:
    masks_NxRxC = stay_masks(delta_NxRxC, context, params)
  factor_N = l1_ratio(*another_pass(delta_NxRxC, masks_NxRxC))
  update_RxC, stats = merge_masked(
    list(masks_NxRxC),
    [f * x for f, x in zip(factor_N, differences(delta_NxRxC), strict=True)],
    context.weights_N,
    elect=params.elect,
    divisor='weights' if params.elect else 'none',
  )
  return Dense(params.scale * update_RxC), stats


METHOD = Method(
  name='della',
  source='Deep et al. 2024, arXiv 2406.11617',
  params=Della,
  merge=merge,
  scratch=33,
  takes_weights=True,
)
