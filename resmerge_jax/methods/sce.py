"""SCE: select entries by variance, calculate weights, erase minority signs.

Wan et al. 2024 (FuseChat), arXiv 2408.07990, Sec. 3.3, as in mergekit 0.1.5. Two
thresholds of mergekit are left out: it gives all experts equal weights where the sum of
their mean squares is below 1e-6, which updates by RL never reach, and divides by no
less than 1e-6.
"""

import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass, sums
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.order_statistic import (
  counts_of_rows,
  differences,
  kept,
  largest,
)
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.methods.sign_election import (
  disjoint_merge,
  mask_stats,
  masked,
  total,
)
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class Sce:
  """`select`: tau, the fraction of entries that differ among experts to be kept: those of
  largest variance over the experts (none of a single expert's). 1 keeps all. `scale`:
  lambda."""

  select: float = 0.1
  scale: float = 1.0

  def __post_init__(self) -> None:
    check_params(
      'sce',
      self,
      select=(0 <= self.select <= 1, 'a number from 0 to 1'),
      scale=(math.isfinite(self.scale), 'a finite number'),
    )


def variance(delta_NxRxC: TaskVectors) -> list[jax.Array]:
  """That of each entry over the experts, RxC, as the only entry of a list."""
  x_NxRxC = differences(delta_NxRxC)
  mean_RxC = total(x_NxRxC) / len(x_NxRxC)
  return [total([(x_RxC - mean_RxC) ** 2 for x_RxC in x_NxRxC]) / len(x_NxRxC)]


def _differing(delta_NxRxC: TaskVectors) -> jax.Array:
  """Number of entries that are not the same in all experts."""
  first_RxC, *others = differences(delta_NxRxC)
  same = [x_RxC == first_RxC for x_RxC in others]
  differs_RxC = ~functools.reduce(operator.and_, same, jnp.ones(first_RxC.shape, bool))
  return counts_of_rows([differs_RxC]).sum()


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: Sce,
) -> tuple[Dense, Stats]:
  """scale * weighted mean of what agrees, by entry, among the selected entries."""
  n = len(delta_NxRxC)
  if params.select < 1:
    k = (params.select * _differing(delta_NxRxC)).astype(jnp.int32)
    (again_NxRxC,) = another_pass(delta_NxRxC)
    cut = largest(again_NxRxC, k, variance)

  def selected(delta_NxRxC: TaskVectors) -> tuple[jax.Array, list[jax.Array]]:
    x_NxRxC = differences(delta_NxRxC)
    if params.select == 1:
      return jnp.ones(delta_NxRxC.shape, bool), x_NxRxC
    mask_RxC = kept(cut, 0, variance(delta_NxRxC)[0])
    return mask_RxC, masked([mask_RxC] * n, x_NxRxC)

  squares_N = sums([x**2 for x in selected(*another_pass(delta_NxRxC))[1]])
  weights_N = squares_N / jnp.where(squares_N.sum() > 0, squares_N.sum(), 1.0)

  def pass_over(delta_NxRxC: TaskVectors) -> tuple[jax.Array, Stats]:
    mask_RxC, x_NxRxC = selected(delta_NxRxC)
    update_RxC, votes = disjoint_merge(
      x_NxRxC, weights_N, tie=1, divisor='weights', weighted_vote=False
    )
    return update_RxC, mask_stats([mask_RxC], votes)

  update_RxC, _ = pass_over(delta_NxRxC)
  _, stats = pass_over(*another_pass(delta_NxRxC))
  return Dense(params.scale * update_RxC), {**stats, 'weights': weights_N}


METHOD = Method(
  name='sce',
  source='Wan et al. 2024, arXiv 2408.07990',
  params=Sce,
  merge=merge,
  scratch=16,
)
