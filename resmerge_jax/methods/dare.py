"""DARE: drop entries of the task vectors at random, rescale the rest, merge.

Yu et al. 2024, arXiv 2311.03099, Sec. 3. Three programs in use differ:

`mergekit` (0.1.5): rescales each tensor of each expert so that its sum of magnitudes is
  what it was; `dare` is sum w_i x_i, `dare_ties` the sum of the w_i x_i that agree
  with the elected sign, weights multiplying before the election.
`peft` (0.21): divides by the density; `dare` is sum w_i x_i; `dare_ties` elects without
  weights and divides the weighted sum by the number that agrees.
`mergelm` (the authors'): divides by the density; `dare` averages; `dare_ties` is
  official TIES of the dropped task vectors, which trims them to a fifth again.

The masks cannot be those of another program (see `random_masks`).
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.methods.global_trim import threshold_masks, trim_scans
from resmerge_jax.methods.random_masks import drop_masks, l1_ratio
from resmerge_jax.methods.sign_election import (
  Divisor,
  disjoint_merge,
  mask_stats,
  masked,
  total,
)
from resmerge_jax.methods.ties import POSITIVE
from resmerge_jax.types import Family

FLAVOURS = ('mergekit', 'peft', 'mergelm')
DIVISORS: dict[str, Divisor] = {
  'mergekit': 'none',
  'peft': 'count',
  'mergelm': 'weights',
}
RETRIM = 0.2  # MergeLM's default: 80 % of the entries are trimmed


@dataclasses.dataclass(frozen=True)
class _Drop:
  """`density`: probability that an entry stays, 1 - p in the paper. `scale`: lambda."""

  flavour: Literal['mergekit', 'peft', 'mergelm'] = 'mergekit'
  density: float = 0.2
  scale: float = 1.0

  def __post_init__(self) -> None:
    check_params(
      type(self).__name__,
      self,
      flavour=(self.flavour in FLAVOURS, ' | '.join(FLAVOURS)),
      density=(0 <= self.density <= 1, 'a number from 0 to 1'),
      scale=(math.isfinite(self.scale), 'a finite number'),
    )


class Dare(_Drop):
  """Parameters of DARE with a linear merge: see `_Drop`."""


class DareTies(_Drop):
  """Parameters of DARE with an election of signs: see `_Drop`."""


def dropped(
  delta_NxRxC: TaskVectors, context: Context, params: _Drop
) -> tuple[list[jax.Array], list[jax.Array]]:
  """The task vectors with entries dropped and the rest rescaled, and the masks; RxC."""
  n, (rows, cols) = len(delta_NxRxC), delta_NxRxC.shape
  if params.density in (0, 1):
    stays = jnp.full((rows, cols), params.density == 1)
    return [params.density * delta_NxRxC[i] for i in range(n)], [stays] * n
  masks_NxRxC = drop_masks(context, rows, cols, params.density)
  if params.flavour == 'mergekit':
    factor_N = l1_ratio(*another_pass(delta_NxRxC, masks_NxRxC))
  else:
    factor_N = jnp.full(n, 1 / params.density, jnp.float32)
  x_NxRxC = [
    jnp.where(masks_NxRxC[i], factor_N[i] * delta_NxRxC[i], 0.0) for i in range(n)
  ]
  return x_NxRxC, list(masks_NxRxC)


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: Dare,
) -> tuple[Dense, Stats]:
  """scale * sum_i w_i x_i, divided by sum_i w_i for `mergelm`."""
  x_NxRxC, masks_NxRxC = dropped(delta_NxRxC, context, params)
  a_N = params.scale * context.weights_N
  if params.flavour == 'mergelm':
    by = context.weights_N.sum()
    a_N = jnp.where(by == 0, 0.0, a_N / jnp.where(by == 0, 1.0, by))
  update_RxC = total(a * x_RxC for a, x_RxC in zip(a_N, x_NxRxC, strict=True))
  return Dense(update_RxC), mask_stats(masks_NxRxC)


def merge_ties(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: DareTies,
) -> tuple[Dense, Stats]:
  """scale * disjoint merge of the x_i, trimmed again for `mergelm`."""
  x_NxRxC, masks_NxRxC = dropped(delta_NxRxC, context, params)
  tie: jax.Array | int = POSITIVE
  if params.flavour == 'mergelm':
    tie = context.found['majority']
    again_NxRxC = threshold_masks(x_NxRxC, context)
    masks_NxRxC = [m & t for m, t in zip(masks_NxRxC, again_NxRxC, strict=True)]
    x_NxRxC = masked(masks_NxRxC, x_NxRxC)
  update_RxC, votes = disjoint_merge(
    x_NxRxC,
    context.weights_N,
    tie=tie,
    divisor=DIVISORS[params.flavour],
    weighted_vote=params.flavour != 'peft',
  )
  return Dense(params.scale * update_RxC), mask_stats(masks_NxRxC, votes)


RETRIMS = trim_scans(
  lambda delta_NxRxC, context, params: dropped(delta_NxRxC, context, params)[0],
  lambda params: RETRIM,  # noqa: ARG005
)
SOURCE = 'Yu et al. 2024, arXiv 2311.03099'


def _by_tensor(params: _Drop) -> bool:
  return params.flavour == 'mergekit'


METHOD = Method(
  name='dare',
  source=SOURCE,
  params=Dare,
  merge=merge,
  scratch=17,
  takes_weights=True,
  whole_matrix=_by_tensor,
)
METHOD_TIES = Method(
  name='dare_ties',
  source=SOURCE,
  params=DareTies,
  merge=merge_ties,
  scratch=17,
  takes_weights=True,
  whole_matrix=_by_tensor,
  scans=lambda params: RETRIMS if params.flavour == 'mergelm' else (),
)
