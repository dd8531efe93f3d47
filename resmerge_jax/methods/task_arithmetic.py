"""Task arithmetic: W_0 + lambda sum_i D_i (Ilharco et al., arXiv 2212.04089, Sec. 2).

Also the rule for every tensor outside another method's scope: norms, vectors,
embeddings, the LM head (ResMerge paper, Sec. 4).
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.task_vectors import Products, TaskVectors
from resmerge_jax.methods.base import Context, LowRank, Method, Stats, combination
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class TaskArithmetic:
  """`reduce`: 'sum' is scale * sum w_i D_i, 'mean' that divided by sum w_i.

  `scale`: lambda.
  """

  reduce: Literal['mean', 'sum'] = 'mean'
  scale: float = 1.0

  def __post_init__(self) -> None:
    if self.reduce not in ('mean', 'sum'):
      raise InputError(
        f"task_arithmetic.reduce: got {self.reduce!r}, expected 'mean' or 'sum'"
      )
    if not math.isfinite(self.scale):
      raise InputError(f'task_arithmetic.scale: got {self.scale!r}, expected a number')


def merge(
  delta_NxRxC: TaskVectors | Products,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: TaskArithmetic,
) -> tuple[LowRank, Stats]:
  """a_i = scale * w_i, divided by the sum of the weights for `mean`."""
  weights_N = context.weights_N
  a_N = params.scale * weights_N
  if params.reduce == 'mean':
    total = weights_N.sum()  # 0 for rows of a padded vocabulary that no expert has
    a_N = jnp.where(total == 0, 0.0, a_N / jnp.where(total == 0, 1.0, total))
  return combination(a_N, delta_NxRxC), {}


METHOD = Method(
  name='task_arithmetic',
  source='Ilharco et al. 2023, arXiv 2212.04089',
  params=TaskArithmetic,
  merge=merge,
  terms=lambda params, n, k: 0,  # noqa: ARG005
  scratch=0,
  on_factors=True,
  takes_weights=True,
  whole_matrix=lambda params: False,  # noqa: ARG005
  gets=lambda params: 'hidden',  # noqa: ARG005
  outside=lambda params, n: params,  # noqa: ARG005
)
