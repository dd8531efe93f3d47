"""One record per tensor: what it was, what the merge did to it, what rounding cost."""

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.host_float import to_float32
from resmerge_jax.pipeline.kernels import Merged
from resmerge_jax.pipeline.staging import Staged
from resmerge_jax.plan.rules import Rule, family_of
from resmerge_jax.plan.stacks import Step

SUMS = ('delta_sq', 'changed', 'update_sq', 'loss_sq', 'size')


class Records:
  """Collects steps in any order; blocks of rows of one tensor are added up."""

  def __init__(self, group: ExpertGroup, rules: Mapping[str, Rule]):
    self._group = group
    self._rules = rules
    self._blocks: dict[str, dict[int, Any]] = {}  # name -> first row -> numbers
    n = len(group.sources)
    self._equal = set(itertools.combinations(range(n), 2))

  def add(
    self,
    step: Step,
    merged: Merged,
    branches: Sequence[str],
    exact_LxN: np.ndarray,
    inputs: Staged,
  ) -> dict[str, Any]:
    """Takes the numbers of one computed step (host arrays).

    Returns:
      The same for `restore`, as JSON keeps them exactly.
    """
    n_rows = step.row_stop - step.row_start
    tensors = [
      {
        'delta_sq': _plain(merged.sums.delta_sq_LxN[layer].astype(np.float64)),
        'changed': _plain(merged.sums.changed_LxN[layer].astype(np.int64)),
        'update_sq': float(merged.sums.update_sq_L[layer]),
        'loss_sq': float(merged.sums.loss_sq_L[layer]),
        'size': n_rows * step.stack.n_cols,
        'stats': _head_stats(merged, layer, exact_LxN)
        | {
          key: branches[value[layer]] if key == 'branch' else _plain(value[layer])
          for key, value in merged.stats.items()
        },
      }
      for layer in range(len(step.names))
    ]
    numbers = {'tensors': tensors, 'differ': self._differing(step, inputs, n_rows)}
    self.restore(step, numbers)
    return numbers

  def restore(self, step: Step, numbers: Mapping[str, Any]) -> None:
    """Takes what `add` returned for a step, in this run or an earlier one."""
    for name, tensor in zip(step.names, numbers['tensors'], strict=True):
      self._blocks.setdefault(name, {})[step.row_start] = tensor
    self._equal -= {(i, j) for i, j in numbers['differ']}

  def _differing(self, step: Step, inputs: Staged, n_rows: int) -> list[list[int]]:
    """Pairs of sources, equal so far, that differ here; no others are looked at."""
    n_layers = len(step.names)
    differing = []
    for i, j in sorted(self._equal):
      a, b = (inputs.source(s)[:n_layers, :n_rows] for s in (i, j))
      if not _same_values(a, b):
        differing.append([i, j])
    return differing

  def finish(self) -> list[dict[str, Any]]:
    """The records, in the base's order of tensors."""
    return [self._record(name) for name in self._group.names]

  def _record(self, name: str) -> dict[str, Any]:
    record = {
      'name': name,
      'rule': self._rules[name].action,
      'family': family_of(name),
      'shape': list(self._group.out_shape(name)),
    }
    if name not in self._blocks:
      return record
    blocks = [block for _, block in sorted(self._blocks[name].items())]
    sums = {key: _total(block[key] for block in blocks) for key in SUMS}
    update = sums['update_sq'] ** 0.5
    return record | {
      'delta_norm': _plain(np.sqrt(sums['delta_sq'])),
      'zero_fraction': _plain(1 - sums['changed'] / max(sums['size'], 1)),
      'update_norm': update,
      'rounding_loss': sums['loss_sq'] ** 0.5 / update if update else 0.0,
      **blocks[-1]['stats'],
      **({'identical': self._identical()} if self._equal else {}),
    }

  def _identical(self) -> list[list[str]]:
    """Pairs of sources that hold the same weights in every tensor."""
    ids = ['base', *(expert.id for expert in self._group.experts)]
    return [[ids[i], ids[j]] for i, j in sorted(self._equal)]

  def twins(self) -> list[str]:
    """Warnings about sources that hold the same weights. Complete after the last step."""
    if not self._blocks:
      return []
    ids = [source.id for source in self._group.sources]
    return [
      f'expert {ids[j]!r} is identical to the base: it brings no update'
      if i == 0
      else f'experts {ids[i]!r} and {ids[j]!r} are identical: one update counts twice'
      for i, j in sorted(self._equal)
    ]


def _head_stats(merged: Merged, layer: int, exact_LxN: np.ndarray) -> dict[str, Any]:
  if merged.head is None:
    return {}
  sigma_NxK = merged.head.sigma_K[layer].astype(np.float64)
  sigma_next_N = merged.head.sigma_next[layer].astype(np.float64)
  last_N = sigma_NxK[:, -1]
  gap_N = np.where(last_N > 0, 1 - sigma_next_N / np.where(last_N > 0, last_N, 1), 0)
  return {
    'sigma': _plain(sigma_NxK),
    'sigma_next': _plain(sigma_next_N),
    'gap': _plain(gap_N),
    'head_error_estimate': _plain(merged.head.error[layer]),
    'certified': _plain(merged.head.certified[layer]),
    'float64_head': _plain(exact_LxN[layer]),
  }


def _total(numbers: Iterable[Any]) -> Any:
  """Sum of numbers or of lists of numbers, in order: rounding must not depend on when."""
  return functools.reduce(
    operator.add, (np.asarray(n) if isinstance(n, list) else n for n in numbers)
  )


def _plain(value: Any) -> Any:
  """Numbers and lists that JSON knows."""
  return np.asarray(value).tolist()


def _same_values(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether LxRxC arrays hold the same numbers; a first row usually tells."""
  return _equal(a[:1, :1], b[:1, :1]) and _equal(a, b)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
  if a.dtype != b.dtype:
    return bool(np.array_equal(to_float32(a), to_float32(b)))
  return bool(np.array_equal(a.view(f'u{a.itemsize}'), b.view(f'u{b.itemsize}')))
