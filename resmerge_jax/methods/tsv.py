"""TSV-Merge (Gargiulo et al. 2025, arXiv 2412.00081): task singular vectors, whitened.

Each expert keeps its leading 1/N of the singular triplets. The kept left vectors of all
experts together give way to the nearest orthonormal ones, and so do the right vectors:

  polar([U_1 .. U_N]) diag(sigma_1 .. sigma_N) polar([V_1 .. V_N])^T
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.short_side import Blocks
from resmerge_jax.linalg.spectrum import between_polars, spectrum
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods import spectral
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.types import Family

# no_rank: fewer ranks than experts, none for each. single: one expert comes back as is.
BRANCHES = (*spectral.BRANCHES, 'no_rank', 'single')
NO_RANK, SINGLE = (BRANCHES.index(name) for name in ('no_rank', 'single'))


@dataclasses.dataclass(frozen=True)
class Tsv:
  """`scale` multiplies the update. `scope`: tensors outside it get the mean."""

  scale: float = 1.0
  scope: Literal['matrices', 'hidden'] = 'matrices'

  def __post_init__(self) -> None:
    check_params('tsv', self, **spectral.checks(self))


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: Tsv,
) -> tuple[Dense, Stats]:
  """TSV-M of one matrix, with int(r / N) triplets of each expert."""
  n, blocks = len(delta_NxRxC), Blocks(delta_NxRxC)
  kept = int(blocks.short * (1 / n))
  if n == 1:
    update_RxC = jnp.float32(params.scale) * delta_NxRxC[0]
    return Dense(update_RxC), {'branch': jnp.int32(SINGLE)}
  if kept == 0:
    zero_RxC = jnp.zeros(delta_NxRxC.shape, jnp.float32)
    return Dense(zero_RxC), {'branch': jnp.int32(NO_RANK)}

  gram_NxSxS = blocks.sum(blocks.grams)
  tasks = jax.lax.map(
    lambda i: spectrum(
      gram_NxSxS[i],
      lambda: blocks.triangle(lambda x_NxBxS: x_NxBxS[i]),
      kept,
      missing=blocks.missing,
    ),
    jnp.arange(n),
  )

  def left(x_NxBxS: jax.Array) -> jax.Array:
    to_left_NxSxK = tasks.to_left.astype(x_NxBxS.dtype)
    return jnp.hstack([x_NxBxS[i] @ to_left_NxSxK[i] for i in range(n)])

  update_RxC, error, complete = between_polars(
    blocks,
    left,
    jnp.hstack(list(tasks.v_SxM)),
    params.scale * tasks.sigma_M.reshape(-1),
    tasks.error.max(),
    tasks.growth,
  )
  energy_N = jnp.trace(gram_NxSxS, axis1=1, axis2=2)
  share_N = (tasks.sigma_M**2).sum(1) / jnp.where(energy_N > 0, energy_N, 1.0)
  stats = spectral.outcome(energy_N.max(), complete & tasks.complete, error)
  return Dense(update_RxC), stats | {'kept_energy': jnp.float32(share_N)}


METHOD = Method(
  name='tsv',
  source='Gargiulo et al. 2025, arXiv 2412.00081 (TSV-Merge)',
  params=Tsv,
  merge=merge,
  branches=BRANCHES,
  float64=True,
  block_scratch=lambda n: 60 * n,
  gets=lambda params: params.scope,
  spans='each',
)
