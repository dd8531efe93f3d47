"""WARP (Ramé et al. 2024, arXiv 2406.16768): spherical interpolation of task vectors.

Of the paper's three averages the two that merge checkpoints: slerp of the task vectors,
layer by layer, each layer with its own angle, and linear interpolation towards the
initialisation (LITI). More than two experts join one after the
other, the m-th at lambda = 1/m: their order matters, by design of the paper.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from resmerge_jax.linalg.gram import gram
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.sphere import BRANCHES, iterated_slerp
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import (
  Context,
  Findings,
  LowRank,
  Stats,
  TensorFacts,
  Totals,
  check_params,
  combination,
)
from resmerge_jax.methods.gram_groups import GROUPS, Group, grams, grouped_method
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class Warp:
  """`group`: what shares an angle. `eta` of LITI: 0 is the base, 1 the interpolation.

  `layer` is the paper's: all tensors of a decoder layer. It says nothing of tensors
  outside them (embeddings, final norm, head): each is a group of its own here.
  """

  group: Group = 'layer'
  eta: float = 1.0

  def __post_init__(self) -> None:
    check_params(
      'warp',
      self,
      group=(self.group in GROUPS, ' | '.join(GROUPS)),
      eta=(0 <= self.eta < math.inf, 'a finite number, 0 or more'),
    )


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: Warp,
) -> tuple[LowRank, Stats]:
  """eta sum_i a_i D_i, a_i from the Gram matrix of the tensor or of its group."""
  if params.group == 'tensor':
    a_N, cos_M, branch = iterated_slerp(gram(delta_NxRxC))
  else:
    a_N, cos_M, branch = (context.found[key] for key in ('a_N', 'cos_M', 'branch'))
  stats = {'a': a_N, 'cos': cos_M, 'branch': branch}
  return combination(params.eta * a_N, delta_NxRxC), stats


def finish(
  totals: Totals,
  facts: Mapping[str, TensorFacts],
  params: Warp,
  before: Findings,  # noqa: ARG001
) -> Findings:
  """Coefficients per tensor."""
  found: dict[str, Mapping[str, np.ndarray]] = {}
  for names, gram_NxN in grams(totals, facts, params.group):
    a_N, cos_M, branch = iterated_slerp(gram_NxN)
    shared = {
      'a_N': np.asarray(a_N, np.float32),
      'cos_M': np.asarray(cos_M, np.float32),
      'branch': np.asarray(branch, np.int32),
    }
    found |= dict.fromkeys(names, shared)
  return found


METHOD = grouped_method(
  name='warp',
  source='Ramé et al. 2024, arXiv 2406.16768',
  params=Warp,
  merge=merge,
  branches=BRANCHES,
  finish=finish,
)
