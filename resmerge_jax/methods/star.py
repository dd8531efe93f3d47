"""STAR (Lee et al. 2025, arXiv 2502.10339): spectral truncation and rescale.

Each expert keeps as many leading triplets as hold eta per cent of its nuclear norm and
is scaled so that the nuclear norm stays; the update is the mean of what results.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.short_side import Blocks, summed
from resmerge_jax.linalg.spectrum import EPS
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods import spectral
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.types import Family

# sigma_1^2 times this is what rounding leaves of a zero in a Gram spectrum: the
# roots of such values would add up to a nuclear norm of their own.
NOISE = 4 * EPS
TIE = 1e-9  # gap in sigma^2 / sigma_1^2 at the cut up to which either triplet may stay


@dataclasses.dataclass(frozen=True)
class Star:
  """`eta`: per cent of the nuclear norm that the kept triplets hold."""

  eta: float = 40.0

  def __post_init__(self) -> None:
    check_params('star', self, eta=(0 < self.eta <= 100, '0 < eta <= 100'))


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: Star,
) -> tuple[Dense, Stats]:
  """Mean of D_i V_r V_r^T times (sum of sigma) / (sum of the r kept ones).

  The record's `norm_ratio` is ||D_i'|| / ||D_i||: flat spectra inflate. An unchanged
  expert adds nothing.
  """
  n, blocks = len(delta_NxRxC), Blocks(delta_NxRxC)

  cut = jax.lax.map(functools.partial(_cut, eta=params.eta), blocks.sum(blocks.grams))
  update_RxC = blocks.map(
    lambda x_NxBxS: summed(
      [blocks.times(x_NxBxS[i], cut.k_SxS[i] / n) for i in range(n)]
    ),
    1.0,  # scaled projections
  )
  branch = jnp.where(cut.tie.any(), spectral.ILL_POSED, spectral.OK)
  return Dense(update_RxC), {
    'branch': jnp.int32(jnp.where(cut.rank.max() > 0, branch, spectral.ZERO)),
    'rank': jnp.int32(cut.rank),
    'norm_ratio': jnp.float32(cut.norm_ratio),
  }


class _Cut(NamedTuple):
  k_SxS: jax.Array  # D_i' = X_i k, turned back
  rank: jax.Array
  norm_ratio: jax.Array
  tie: jax.Array


def _cut(gram_SxS: jax.Array, eta: float) -> _Cut:
  """r = min{j: sum of j sigmas >= eta % of all}, and the scale that undoes the loss."""
  lambda_S, v_SxS = jnp.linalg.eigh(gram_SxS, symmetrize_input=False)
  lambda_S, v_SxS = lambda_S[::-1], v_SxS[:, ::-1]
  lambda_S = jnp.where(lambda_S > NOISE * lambda_S[0], lambda_S, 0.0)
  sigma_S = jnp.sqrt(lambda_S)
  total, exists = sigma_S.sum(), lambda_S[0] > 0
  before_S = jnp.cumsum(sigma_S) - sigma_S
  kept_S = before_S < eta / 100 * total  # nothing of a zero matrix
  scale = total / jnp.where(exists, (sigma_S * kept_S).sum(), 1.0)
  share = (lambda_S * kept_S).sum() / jnp.where(exists, lambda_S.sum(), 1.0)
  last = jnp.where(kept_S, lambda_S, jnp.inf).min()
  first = jnp.where(kept_S, -jnp.inf, lambda_S).max()
  return _Cut(
    k_SxS=scale * (v_SxS * kept_S) @ v_SxS.T,
    rank=kept_S.sum(),
    norm_ratio=scale * jnp.sqrt(share),
    tie=last - first <= TIE * lambda_S[0],
  )


METHOD = Method(
  name='star',
  source='Lee et al. 2025, arXiv 2502.10339 (STAR)',
  params=Star,
  merge=merge,
  branches=spectral.BRANCHES,
  float64=True,
  block_scratch=lambda n: 60 * n,
  gets=lambda params: 'hidden',  # noqa: ARG005
)
