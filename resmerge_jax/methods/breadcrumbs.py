"""Model Breadcrumbs: drop the smallest entries of a task vector, and the largest few.

Davari and Belilovsky 2023, arXiv 2312.06795, Sec. 3, as in mergekit 0.1.5: of the n
entries of a tensor in order of magnitude, the int(gamma n) largest are left out, the next
int(density n) stay (fewer are left out where they would not be that many).
"""

import dataclasses
import math

import jax

from resmerge_jax.linalg.gram import another_pass
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.order_statistic import differences, kept, largest
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.methods.sign_election import merge_masked
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class Breadcrumbs:
  """`density`: fraction of entries that stay. `gamma`: fraction of outliers left out.

  `elect`: elect a sign per entry and sum what agrees (mergekit's `breadcrumbs_ties`);
  otherwise all are summed. `scale`: lambda.
  """

  density: float = 0.9
  gamma: float = 0.01
  elect: bool = False
  scale: float = 1.0

  def __post_init__(self) -> None:
    check_params(
      'breadcrumbs',
      self,
      density=(0 <= self.density <= 1, 'a number from 0 to 1'),
      gamma=(0 <= self.gamma <= 1, 'a number from 0 to 1'),
      elect=(isinstance(self.elect, bool), 'True or False'),
      scale=(math.isfinite(self.scale), 'a finite number'),
    )


def ranks_kept(params: Breadcrumbs, size: int) -> tuple[int, int]:
  """Ranks [first, last) that stay, the largest magnitude having rank 0."""
  if params.density == 1:
    return 0, size
  stays = int(params.density * size)
  smallest = max(0, size - stays - int(params.gamma * size))  # so many are dropped
  return size - smallest - stays, size - smallest


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: Breadcrumbs,
) -> tuple[Dense, Stats]:
  """scale * sum of the w_i x_i, or of those that agree with the elected sign."""
  first, last = ranks_kept(params, math.prod(delta_NxRxC.shape))
  outer, inner = largest(delta_NxRxC, last), largest(delta_NxRxC, first)

  def masks(x_NxRxC: list[jax.Array]) -> list[jax.Array]:
    return [
      kept(outer, i, x_RxC) & ~kept(inner, i, x_RxC) for i, x_RxC in enumerate(x_NxRxC)
    ]

  def pass_over(delta_NxRxC: TaskVectors) -> tuple[jax.Array, Stats]:
    x_NxRxC = differences(delta_NxRxC)
    return merge_masked(masks(x_NxRxC), x_NxRxC, context.weights_N, params.elect)

  update_RxC, _ = pass_over(delta_NxRxC)
  _, stats = pass_over(*another_pass(delta_NxRxC))
  return Dense(params.scale * update_RxC), stats


METHOD = Method(
  name='breadcrumbs',
  source='Davari and Belilovsky 2023, arXiv 2312.06795',
  params=Breadcrumbs,
  merge=merge,
  takes_weights=True,
)
