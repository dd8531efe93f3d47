"""Rank masks: the sum of experts, each cut to some of its singular components.

W_0 + sum_i lambda_i U_i diag(b_i sigma_i) V_i^T, with b_i of 0 and 1. Where masks are
given, b and lambda come from their file, per expert and tensor; tools.adarank learns
such a file as AdaRank does (Lee et al. 2025, arXiv 2503.22178). Else every expert keeps
its leading components under one lambda: the state in which AdaRank starts.

Tensors outside the method's scope are W_0 + sum_i lambda_i D_i.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.short_side import Blocks
from resmerge_jax.linalg.spectrum import EPS, MAX_ERROR
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods import spectral
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class RankMask:
  """`rank_ratio`: share of the leading components that stay, 0: 1/N.

  `scale`: lambda, where the file of masks brings none. `masks`: file of masks (and of
  lambdas), such as tools.adarank writes; it takes the place of rank_ratio.
  """

  rank_ratio: float = 1.0
  scale: float = 0.3
  masks: str = ''

  def __post_init__(self) -> None:
    check_params(
      'rank_mask',
      self,
      rank_ratio=(0 <= self.rank_ratio <= 1, 'a number in [0, 1]'),
      scale=(math.isfinite(self.scale), 'a finite number'),
    )
    if self.masks and self.rank_ratio != 1:
      raise InputError(
        f'rank_mask: both masks and rank_ratio {self.rank_ratio}',
        fix='leave one of them out',
      )

  def kept(self, short: int, n: int) -> int:
    """How many of the `short` components each of n experts keeps."""
    return int(short * (self.rank_ratio or 1 / n))


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: RankMask,
) -> tuple[Dense, Stats]:
  """sum_i lambda_i X_i V_i diag(b_i) V_i^T, X_i with the short side as columns.

  The record's `error` estimates how far the update may lie from that of exact singular
  vectors, relative to the experts: close singular values of which one stays and one
  goes have vectors that rounding turns into each other.
  """
  n, blocks = len(delta_NxRxC), Blocks(delta_NxRxC)
  if params.masks:
    scale_N, mask_NxS = context.weights_N, context.found['mask_NxS']
  else:
    kept_S = jnp.arange(blocks.short) < params.kept(blocks.short, n)
    scale_N, mask_NxS = jnp.full(n, params.scale, jnp.float32), jnp.tile(kept_S, (n, 1))

  def one(
    gram_and_mask: tuple[jax.Array, jax.Array],
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    gram_SxS, mask_S = gram_and_mask
    energy_S, v_SxS = components(gram_SxS)
    energy = energy_S.sum()
    share = (energy_S * mask_S).sum() / jnp.where(energy > 0, energy, 1.0)
    k_SxS = (v_SxS * mask_S) @ v_SxS.T
    return k_SxS, share, _uncertainty(energy_S, mask_S), energy

  given = blocks.sum(blocks.grams), mask_NxS.astype(jnp.float64)
  k_NxSxS, share_N, error_N, energy_N = jax.lax.map(one, given)
  k_NxSxS = scale_N[:, None, None] * k_NxSxS
  update_RxC = blocks.map(
    lambda x_NxBxS: sum(
      x_NxBxS[i] @ k_NxSxS[i].astype(x_NxBxS.dtype) for i in range(n)
    ),
    1.0,  # projections
  )
  error = error_N.max()
  return Dense(update_RxC), {
    **spectral.outcome(energy_N.max(), error <= MAX_ERROR, error),
    'rank': jnp.int32(mask_NxS.sum(1)),
    'kept_energy': jnp.float32(share_N),
  }


def components(gram_SxS: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Squared singular values, descending, and right vectors, from a Gram matrix."""
  lambda_S, v_SxS = jnp.linalg.eigh(gram_SxS, symmetrize_input=False)
  return jnp.maximum(lambda_S[::-1], 0.0), v_SxS[:, ::-1]


def _uncertainty(energy_S: jax.Array, mask_S: jax.Array) -> jax.Array:
  """Error of X V diag(b) V^T over ||X||: neighbours that differ in b turn by about
  EPS sigma_1^2 over the gap of their squares.
  """
  gap_S = energy_S[:-1] - energy_S[1:]
  apart_S = mask_S[:-1] != mask_S[1:]
  noise = EPS * energy_S[0]
  turn_S = jnp.where(gap_S > noise, noise / jnp.where(gap_S > noise, gap_S, 1.0), 1.0)
  turn_S = jnp.where(apart_S, turn_S, 0.0)
  total = energy_S.sum()
  square = 2 * (turn_S**2 * energy_S[:-1]).sum() / jnp.where(total > 0, total, 1.0)
  return jnp.sqrt(square)


METHOD = Method(
  name='rank_mask',
  source='Masks of AdaRank, learnt by tools.adarank (Lee et al. 2025, arXiv 2503.22178)',
  params=RankMask,
  merge=merge,
  branches=spectral.BRANCHES,
  float64=True,
  block_scratch=lambda n: 60 * n,
  gets=lambda params: 'hidden',  # noqa: ARG005
  outside=lambda params, n: TaskArithmetic(  # noqa: ARG005
    'sum', 1.0 if params.masks else params.scale
  ),
)
