"""ISO-C (Marczak et al. 2025, arXiv 2502.04959): the summed update, isotropic.

All directions of W = sum_i D_i get the same weight, the mean of its singular values.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.short_side import Blocks, summed
from resmerge_jax.linalg.spectrum import spectrum
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods import spectral
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class IsoC:
  """`scale` multiplies the update. `scope`: tensors outside it get the mean."""

  scale: float = 1.0
  scope: Literal['matrices', 'hidden'] = 'matrices'

  def __post_init__(self) -> None:
    check_params('iso_c', self, **spectral.checks(self))


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: IsoC,
) -> tuple[Dense, Stats]:
  """s polar(W), s the mean of the r singular values of W, missing ones included."""
  blocks = Blocks(delta_NxRxC)

  gram_SxS = blocks.sum(lambda x_NxBxS: blocks.gram(summed(x_NxBxS)))
  whole = spectrum(
    gram_SxS, lambda: blocks.triangle(summed), blocks.short, missing=blocks.missing
  )
  level = whole.sigma_M.mean()
  k_SxS = params.scale * level * whole.inverse_root
  update_RxC = blocks.map(
    lambda x_NxBxS: blocks.times(summed(x_NxBxS), k_SxS), whole.growth
  )
  stats = spectral.outcome(level, whole.complete, whole.error)
  return Dense(update_RxC), stats | {'level': jnp.float32(level)}


METHOD = Method(
  name='iso_c',
  source='Marczak et al. 2025, arXiv 2502.04959 (ISO-C)',
  params=IsoC,
  merge=merge,
  branches=spectral.BRANCHES,
  float64=True,
  block_scratch=lambda n: 40,  # noqa: ARG005
  gets=lambda params: params.scope,
  spans='sum',
)
