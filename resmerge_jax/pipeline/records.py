"""One record per tensor: what it was, what the merge did to it, what rounding cost."""

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.host_float import to_float32
from resmerge_jax.linalg.head import Head
from resmerge_jax.pipeline.fetched import Fetched
from resmerge_jax.pipeline.staging import Shard, Staged
from resmerge_jax.plan.rules import Rule, family_of
from resmerge_jax.plan.stacks import Step
from resmerge_jax.types import find

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
    fetched: Fetched,
    branches: Sequence[str],
    exact_LxN: np.ndarray,
    inputs: Staged,
  ) -> dict[str, Any]:
    """Takes the numbers of one computed step, of the layers that this process owns.

    Returns:
      The same for `restore`, as JSON keeps them exactly.
    """
    n_rows = step.row_stop - step.row_start
    sums = fetched.found.sums
    tensors = {
      step.names[layer]: {
        'delta_sq': _plain(sums.delta_sq_LxN[at].astype(np.float64)),
        'changed': _plain(sums.changed_LxN[at].astype(np.int64)),
        'update_sq': float(sums.update_sq_L[at]),
        'loss_sq': float(sums.loss_sq_L[at]),
        'size': n_rows * step.stack.n_cols,
        'stats': _head_stats(fetched.found.head, at, exact_LxN)
        | {
          key: branches[value[at]] if key == 'branch' else _plain(value[at])
          for key, value in fetched.found.stats.items()
        },
      }
      for at, layer in enumerate(fetched.layers)
      if fetched.owned[at]
    }
    numbers = {'tensors': tensors, 'differ': self._differing(inputs)}
    self.restore(step, numbers)
    return numbers

  def restore(self, step: Step, numbers: Mapping[str, Any]) -> None:
    """Takes what `add` returned for a step, here, earlier, or in another process."""
    for name, tensor in numbers['tensors'].items():
      self._blocks.setdefault(name, {})[step.row_start] = tensor
    self._equal -= {(i, j) for i, j in numbers['differ']}

  def _differing(self, inputs: Staged) -> list[list[int]]:
    """Pairs of sources, equal so far, that differ here; no others are looked at."""
    return [
      [i, j]
      for i, j in sorted(self._equal)
      if not all(_same_source(shard, i, j) for shard in inputs.shards)
    ]

  def finish(self) -> list[dict[str, Any]]:
    """The records, in the base's order of tensors; one per matrix of a batch."""
    return [
      self.record(part)
      for name, ref in self._group.base.tensors.items()
      for part in self._rules[name].matrices(ref)
    ]

  def record(self, name: str) -> dict[str, Any]:
    """Of one tensor or matrix of a batch, of the blocks that were taken so far."""
    ref, _ = find(self._group.base.tensors, name)
    record = {
      'name': name,
      'rule': self._rules[ref.name].action,
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
      **_joined(blocks),
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


def _head_stats(head: Head | None, layer: int, exact_LxN: np.ndarray) -> dict[str, Any]:
  if head is None:
    return {}
  sigma_NxK = head.sigma_K[layer].astype(np.float64)
  sigma_next_N = head.sigma_next[layer].astype(np.float64)
  last_N = sigma_NxK[:, -1]
  gap_N = np.where(last_N > 0, 1 - sigma_next_N / np.where(last_N > 0, last_N, 1), 0)
  return {
    'sigma': _plain(sigma_NxK),
    'sigma_next': _plain(sigma_next_N),
    'gap': _plain(gap_N),
    'head_error_estimate': _plain(head.error[layer]),
    'certified': _plain(head.certified[layer]),
    'float64_head': _plain(exact_LxN[layer]),
  }


def _joined(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Stats of a tensor: those of its only block, or means over its entries."""
  if len(blocks) == 1:
    return dict(blocks[0]['stats'])
  sizes = np.array([block['size'] for block in blocks], np.float64)
  return {
    key: last
    if isinstance(last, str)
    else _plain(
      np.average([block['stats'][key] for block in blocks], axis=0, weights=sizes)
    )
    for key, last in blocks[-1]['stats'].items()
  }


def _total(numbers: Iterable[Any]) -> Any:
  """Sum of numbers or of lists of numbers, in order: rounding must not depend on when."""
  return functools.reduce(
    operator.add, (np.asarray(n) if isinstance(n, list) else n for n in numbers)
  )


def _plain(value: Any) -> Any:
  """Numbers and lists that JSON knows."""
  return np.asarray(value).tolist()


def _same_source(shard: Shard, i: int, j: int) -> bool:
  """Whether two sources hold the same weights here, or the same change of the base."""
  a, b = shard.source(i), shard.source(j)
  if a is not b and not _same_values(a, b):
    return False
  factors = shard.factors(i), shard.factors(j)
  if all(not left.any() or not right.any() for left, right in factors):
    return True
  return all(
    x.shape == y.shape and np.array_equal(x, y) for x, y in zip(*factors, strict=True)
  )


def _same_values(a: np.ndarray, b: np.ndarray) -> bool:
  """Whether LxRxC arrays hold the same numbers; a first row usually tells."""
  return _equal(a[:1, :1], b[:1, :1]) and _equal(a, b)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
  if a.dtype != b.dtype:
    return bool(np.array_equal(to_float32(a), to_float32(b)))
  return bool(np.array_equal(a.view(f'u{a.itemsize}'), b.view(f'u{b.itemsize}')))
