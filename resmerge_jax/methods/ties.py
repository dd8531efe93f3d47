"""TIES: trim small entries, elect a sign per entry, merge what agrees with it.

Yadav et al. 2023, arXiv 2306.01708, Sec. 4.1. Three programs in use differ:

`official` (the authors'): one threshold per expert for the whole model, the k-th smallest
  magnitude, k = D - int(keep D); entries equal to it are kept, so ties keep more. An
  entry whose sum is zero gets the majority sign of the whole model. Divided by the number
  that agrees.
`mergekit` (0.1.5): int(keep n) entries of each tensor, at least one; zero sums count as
  positive; weights multiply before the election; divided by the weights that agree.
`peft` (0.21): int(keep n) entries of each tensor, maybe none; zero sums count as positive;
  the election is without weights; divided by the number that agrees.

Where equal magnitudes must be told apart, mergekit and peft leave it to a sort; here the
first in row-major order are kept. The official code has no weights; here they
multiply before its election and divide after it, as in mergekit.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.order_statistic import differences, kept, largest
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.methods.global_trim import threshold_masks, trim_scans
from resmerge_jax.methods.sign_election import (
  Divisor,
  Vote,
  disjoint_merge,
  mask_stats,
  masked,
)
from resmerge_jax.types import Family

FLAVOURS = ('official', 'mergekit', 'peft')
POSITIVE = 1


@dataclasses.dataclass(frozen=True)
class Ties:
  """`keep`: the fraction rho of entries that the trim leaves. `scale`: lambda.

  `reduce`: 'mean' divides by what agrees (see the flavours), 'sum' does not.
  """

  flavour: Literal['official', 'mergekit', 'peft'] = 'official'
  keep: float = 0.2
  scale: float = 1.0
  reduce: Literal['mean', 'sum'] = 'mean'

  def __post_init__(self) -> None:
    check_params(
      'ties',
      self,
      flavour=(self.flavour in FLAVOURS, ' | '.join(FLAVOURS)),
      keep=(0 <= self.keep <= 1, 'a number from 0 to 1'),
      scale=(math.isfinite(self.scale), 'a finite number'),
      reduce=(self.reduce in ('mean', 'sum'), 'mean | sum'),
    )

  @property
  def divisor(self) -> Divisor:
    if self.reduce == 'sum':
      return 'none'
    return 'count' if self.flavour == 'peft' else 'weights'


def entries_kept(flavour: str, keep: float, size: int) -> int:
  """How many of a tensor's entries the trim leaves, for flavours that trim by tensor."""
  k = int(keep * size)
  return max(k, 1) if flavour == 'mergekit' and keep > 0 else k


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: Ties,
) -> tuple[Dense, Stats]:
  """scale * disjoint merge of the trimmed D_i."""
  n_rows, n_cols = delta_NxRxC.shape
  k = entries_kept(params.flavour, params.keep, n_rows * n_cols)
  whole = k == n_rows * n_cols
  cut = None if params.flavour == 'official' or whole else largest(delta_NxRxC, k)
  tie = context.found['majority'] if params.flavour == 'official' else POSITIVE

  def keeps(x_NxRxC: list[jax.Array]) -> list[jax.Array]:
    if params.flavour == 'official':
      return threshold_masks(x_NxRxC, context)
    if cut is None:
      return [jnp.ones(x_RxC.shape, bool) for x_RxC in x_NxRxC]
    return [kept(cut, i, x_RxC) for i, x_RxC in enumerate(x_NxRxC)]

  def merged(
    delta_NxRxC: TaskVectors,
  ) -> tuple[jax.Array, list[jax.Array], Vote]:
    x_NxRxC = differences(delta_NxRxC)
    masks_NxRxC = keeps(x_NxRxC)
    update_RxC, votes = disjoint_merge(
      masked(masks_NxRxC, x_NxRxC),
      context.weights_N,
      tie=tie,
      divisor=params.divisor,
      weighted_vote=params.flavour != 'peft',
    )
    return params.scale * update_RxC, masks_NxRxC, votes

  update_RxC, _, _ = merged(delta_NxRxC)
  _, masks_NxRxC, votes = merged(*another_pass(delta_NxRxC))
  return Dense(update_RxC), mask_stats(masks_NxRxC, votes)


GLOBAL = trim_scans(
  lambda delta_NxRxC, context, params: differences(delta_NxRxC),  # noqa: ARG005
  lambda params: params.keep,
)

METHOD = Method(
  name='ties',
  source='Yadav et al. 2023, arXiv 2306.01708',
  params=Ties,
  merge=merge,
  takes_weights=True,
  whole_matrix=lambda params: params.flavour != 'official',
  scans=lambda params: GLOBAL if params.flavour == 'official' else (),
)
