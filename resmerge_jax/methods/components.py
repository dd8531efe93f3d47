"""One expert's head or residual alone (ResMerge paper, arXiv 2606.02252, Eq. 6).

Not merges but the probes of the paper's Figures 1 and 6: what a task vector's leading
triplets carry by themselves, and what is left without them.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, LowRank, Method, Stats, check_params
from resmerge_jax.methods.linear import Linear
from resmerge_jax.methods.resmerge_params import MAX_RANK
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.types import Family

OTHERS = ('expert', 'base', 'mean')


@dataclasses.dataclass(frozen=True)
class Component:
  """`expert` counts from 0. `head_rank`: k, the number of leading triplets.

  `others`: whose tensors outside the method's scope are taken: that expert's, the
  base's, or the mean of all experts.
  """

  method: ClassVar[str]

  expert: int = 0
  head_rank: int = 1
  others: Literal['expert', 'base', 'mean'] = 'expert'

  def __post_init__(self) -> None:
    check_params(
      self.method,
      self,
      expert=(self.expert >= 0, 'the number of an expert, from 0'),
      head_rank=(1 <= self.head_rank <= MAX_RANK, f'a rank from 1 to {MAX_RANK}'),
      others=(self.others in OTHERS, ' | '.join(OTHERS)),
    )


class HeadOnly(Component):
  """W_0 + H_i. Fields as in Component."""

  method = 'head_only'


class ResidualOnly(Component):
  """W_0 + D_i - H_i. Fields as in Component."""

  method = 'residual_only'


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: Component,
) -> tuple[LowRank, Stats]:
  """H_i, or R_i = D_i - H_i.

  Raises:
    InputError: if there is no such expert.
  """
  assert head is not None
  n, i = len(delta_NxRxC), params.expert
  if i >= n:
    raise InputError(
      f'{params.method}.expert: got {i}, expected 0 to {n - 1} for {n} experts'
    )
  residual = isinstance(params, ResidualOnly)
  a_N = jnp.zeros(n, jnp.float32).at[i].set(1.0 if residual else 0.0)
  w_K = jnp.full(head.sigma_K.shape[-1], -1.0 if residual else 1.0, jnp.float32)
  return LowRank(a_N, w_K, head.y_KxR[i], head.v_KxC[i]), {}


def _outside(params: Component, n: int) -> Any:
  """`others` as a method of the tensors that have no head."""
  if params.others == 'base':
    return TaskArithmetic(scale=0.0)
  if params.others == 'expert':
    return Linear(weights=tuple(float(i == params.expert) for i in range(n)))
  return None


def _expects(params: Component, n: int) -> str | None:
  if params.expert < n:
    return None
  return f'more than expert {params.expert}, counted from 0'


HEAD_ONLY = Method(
  name=HeadOnly.method,
  source='ResMerge, arXiv 2606.02252, Figures 1 and 6',
  params=HeadOnly,
  merge=merge,
  head_rank=lambda params: params.head_rank,
  gets=lambda params: 'hidden',  # noqa: ARG005
  outside=_outside,
  terms=lambda params, n, k: k,  # noqa: ARG005
  expects=_expects,
)
RESIDUAL_ONLY = dataclasses.replace(
  HEAD_ONLY, name=ResidualOnly.method, params=ResidualOnly
)
