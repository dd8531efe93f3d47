"""Rank masks: the sum of experts, each cut to its leading singular triplets.

This is not AdaRank. AdaRank (Lee et al. 2025, arXiv 2503.22178) learns which triplets
to keep, and a scale per expert and tensor, from unlabelled test data; this is the state
in which it starts: one ratio, one prior scale, nothing learnt.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.krylov import Head
from resmerge_jax.linalg.short_side import Blocks
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class RankMask:
  """`rank_ratio`: share of the ranks that stay, 0: 1/N. `scale`: the prior lambda."""

  rank_ratio: float = 1.0
  scale: float = 0.3

  def __post_init__(self) -> None:
    check_params(
      'rank_mask',
      self,
      rank_ratio=(0 <= self.rank_ratio <= 1, 'a number in [0, 1]'),
      scale=(math.isfinite(self.scale), 'a finite number'),
    )


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: RankMask,
) -> tuple[Dense, Stats]:
  """scale * sum_i D_i V_k V_k^T with k = int(ratio * r)."""
  n, blocks = len(delta_NxRxC), Blocks(delta_NxRxC)
  kept = int(blocks.short * (params.rank_ratio or 1 / n))

  def one(gram_SxS: jax.Array) -> tuple[jax.Array, jax.Array]:
    lambda_S, v_SxS = jnp.linalg.eigh(gram_SxS, symmetrize_input=False)
    v_SxK = v_SxS[:, blocks.short - kept :]
    energy_S = jnp.maximum(lambda_S, 0.0)
    energy = jnp.where(energy_S[-1] > 0, energy_S.sum(), 1.0)
    share = energy_S[blocks.short - kept :].sum() / energy
    return params.scale * v_SxK @ v_SxK.T, share

  k_NxSxS, share_N = jax.lax.map(one, blocks.sum(blocks.grams))
  update_RxC = blocks.map(
    lambda x_NxBxS: sum(
      x_NxBxS[i] @ k_NxSxS[i].astype(x_NxBxS.dtype) for i in range(n)
    ),
    1.0,  # projections
  )
  return Dense(update_RxC), {
    'rank': jnp.int32(kept),
    'kept_energy': jnp.float32(share_N),
  }


METHOD = Method(
  name='rank_mask',
  source='Start of AdaRank, not AdaRank (Lee et al. 2025, arXiv 2503.22178)',
  params=RankMask,
  merge=merge,
  float64=True,
  block_scratch=lambda n: 60 * n,
  gets=lambda params: 'hidden',  # noqa: ARG005
)
