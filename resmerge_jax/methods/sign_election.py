"""Elect a sign per entry, then merge what agrees with it: TIES, steps 2 and 3.

Yadav et al. 2023, arXiv 2306.01708, Sec. 4.1 ("Elect", "Disjoint merge").
"""

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.order_statistic import counts_of_rows
from resmerge_jax.methods.base import Stats

Divisor = Literal['weights', 'count', 'none']


class Vote(NamedTuple):
  """Mass of either sign in each entry, both >= 0, RxC."""

  plus_RxC: jax.Array
  minus_RxC: jax.Array

  def tied(self) -> jax.Array:
    """Where the sum is zero although something is not, RxC."""
    return (self.plus_RxC == self.minus_RxC) & (self.plus_RxC > 0)


def vote(x_NxRxC: Sequence[jax.Array]) -> Vote:
  """gamma = sgn(sum_i x_i), as the comparison of two sums of magnitudes.

  A plain sum would depend on whether the compiler fuses the weights' products into
  it: x - x would come out as the rounding error of a product, and bfloat16 experts cancel
  exactly in a quarter of their entries.
  """
  return Vote(
    total([jnp.maximum(x_RxC, 0) for x_RxC in x_NxRxC]),
    total([jnp.maximum(-x_RxC, 0) for x_RxC in x_NxRxC]),
  )


def disjoint_merge(
  x_NxRxC: Sequence[jax.Array],
  weights_N: jax.Array,
  *,
  tie: jax.Array | int,
  divisor: Divisor,
  weighted_vote: bool = True,
) -> tuple[jax.Array, Vote]:
  """Sum of the w_i x_i that agree with the elected sign, RxC, divided by `divisor`.

  `tie`: the sign of entries that sum to zero; 0 counts as negative. `divisor`: sum of
  the weights of those that agree, their number, or 1. `weighted_vote`: the weights
  multiply before the election, not only after it.
  """
  weighted_NxRxC = [w * x_RxC for w, x_RxC in zip(weights_N, x_NxRxC, strict=True)]
  voters_NxRxC = weighted_NxRxC if weighted_vote else x_NxRxC
  votes = vote(voters_NxRxC)
  positive_RxC = jnp.where(
    votes.plus_RxC == votes.minus_RxC, tie > 0, votes.plus_RxC > votes.minus_RxC
  )
  agrees_NxRxC = [jnp.where(positive_RxC, v > 0, v < 0) for v in voters_NxRxC]
  total_RxC = total(masked(agrees_NxRxC, weighted_NxRxC))
  if divisor == 'none':
    return total_RxC, votes
  shares_N = weights_N if divisor == 'weights' else jnp.ones_like(weights_N)
  by_RxC = total(masked(agrees_NxRxC, list(shares_N)))
  return total_RxC / jnp.where(by_RxC == 0, 1.0, by_RxC), votes


def merge_masked(
  masks_NxRxC: Sequence[jax.Array],
  x_NxRxC: Sequence[jax.Array],
  weights_N: jax.Array,
  elect: bool,
  divisor: Divisor = 'none',
) -> tuple[jax.Array, Stats]:
  """mergekit's two ends of a merge: what agrees with a sign, zero being positive, or the
  sum of all w_i x_i; of the x_i where their masks are True. With the masks' stats."""
  x_NxRxC = masked(masks_NxRxC, x_NxRxC)
  if not elect:
    sum_RxC = total([w * x for w, x in zip(weights_N, x_NxRxC, strict=True)])
    return sum_RxC, mask_stats(masks_NxRxC)
  update_RxC, votes = disjoint_merge(x_NxRxC, weights_N, tie=1, divisor=divisor)
  return update_RxC, mask_stats(masks_NxRxC, votes)


def total(x_NxRxC: Iterable[jax.Array]) -> jax.Array:
  """Their sum, in order."""
  return functools.reduce(operator.add, x_NxRxC)


def masked(
  masks_NxRxC: Sequence[jax.Array], x_NxRxC: Sequence[jax.Array]
) -> list[jax.Array]:
  """Zero where a mask is False."""
  return [jnp.where(m, x, 0.0) for m, x in zip(masks_NxRxC, x_NxRxC, strict=True)]


def mask_stats(masks_NxRxC: Sequence[jax.Array], votes: Vote | None = None) -> Stats:
  """`kept`: the fraction of entries that each mask keeps. `sign_ties`, if there was an
  election: the fraction of entries whose sum is zero though something is not."""
  conditions = [*masks_NxRxC, *([votes.tied()] if votes else [])]
  counts_X = counts_of_rows(conditions).sum(1)
  n = len(masks_NxRxC)
  share_X = counts_X / math.prod(masks_NxRxC[0].shape)
  return {'kept': share_X[:n], 'sign_ties': share_X[n]} if votes else {'kept': share_X}
