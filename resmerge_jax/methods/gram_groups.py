"""Methods whose coefficients follow from the Gram matrix of a group of tensors.

One reading pass, sums in float64 on the host; none where each tensor is a group.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from resmerge_jax.linalg.gram import gram
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import (
  Context,
  Findings,
  Method,
  Scan,
  TensorFacts,
  Totals,
)

# A decoder layer; tensors outside the layers are groups of their own.
Group = Literal['layer', 'tensor', 'model']
GROUPS = ('layer', 'tensor', 'model')


def measure(
  delta_NxRxC: TaskVectors,
  *,
  context: Context,  # noqa: ARG001
  params: Any,  # noqa: ARG001
) -> dict[str, jax.Array]:
  """What a scan sums up of a block of rows."""
  return {'gram_NxN': gram(delta_NxRxC)}


def grams(
  totals: Totals, facts: Mapping[str, TensorFacts], group: Group
) -> Iterator[tuple[list[str], np.ndarray]]:
  """Names of each group and its Gram matrix. A tied embedding counts once."""
  groups: dict[Any, list[str]] = {}
  for name in totals:
    layer = facts[name].layer
    key = '' if group == 'model' else layer if layer >= 0 else name
    groups.setdefault(key, []).append(name)
  for names in groups.values():
    yield names, np.sum([totals[name]['gram_NxN'] for name in names], 0)


def grouped_method(
  *,
  finish: Callable[[Totals, Mapping[str, TensorFacts], Any, Findings], Findings],
  **fields: Any,
) -> Method:
  """A method with the parameter `group`, whose update is sum_i a_i D_i.

  `finish` makes the findings of its scan; `fields` are the rest of `Method`.
  """

  def alone(params: Any) -> bool:
    return params.group == 'tensor'

  return Method(
    **fields,
    scratch=0,
    terms=lambda params, n, k: 0,  # noqa: ARG005
    whole_matrix=alone,
    scans=lambda params: () if alone(params) else (Scan(measure, finish),),
  )
