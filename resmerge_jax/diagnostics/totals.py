"""Totals over the tensors of a model, a family or a layer, from their records."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]
# Means over matrices: numbers, lists per expert or pair, and `energy`.
SPREAD = (
  's_R', 'c_R', 'S_H', 'retention_head', 'retention_residual', 'cos_head_pairs',
  'cos_residual_pairs', 'gap', 'energy', 'stable_rank', 'stable_rank_residual',
  'effective_rank', 'effective_rank_residual', 'alpha_R', 'beta',
)  # fmt: skip
NORMS = ('delta_norm', 'distance', 'base_norm', 'update_norm', 'norm_A', 'norm_C')
COUNTS = ('changed', 'shared')


def totals_of(records: Sequence[Record], parts: bool = True) -> dict[str, Any]:
  """See `GroupDiagnosis.totals`; `parts`: with totals by family and by layer.

  A total stands only where every measured tensor brings what it is made of.
  """
  seen = [r for r in records if 'delta_norm' in r]
  found: dict[str, Any] = {
    'tensors': len(records),
    'matrices': sum('sigma' in r for r in records),
    'entries': sum(_size(r) for r in seen),
  }
  if not seen:
    return found
  for field in NORMS:
    having = [r[field] for r in seen if field in r]
    if len(having) == len(seen) or (field in ('norm_A', 'norm_C') and having):
      found[field] = _root_of_squares(having)
  if 'base_norm' in found:
    found['relative_norm'] = [
      x / found['base_norm'] if found['base_norm'] else None
      for x in found['delta_norm']
    ]
  found['zero_fraction'] = _mean(seen, 'zero_fraction', _size)
  if all('changed' in r for r in seen):
    found |= _entries(seen)
  if 'rounding_loss' in seen[0]:
    lost = _root_of_squares([r['rounding_loss'] * r['update_norm'] for r in seen])
    found['rounding_loss'] = (
      lost / found['update_norm'] if found['update_norm'] else 0.0
    )
  for field in SPREAD:
    having = [r[field] for r in seen if field in r]
    if having:
      found[field] = _spread(having)
  branches = [r['branch'] for r in seen if 'branch' in r]
  if branches:
    found['branch'] = {name: branches.count(name) for name in dict.fromkeys(branches)}
  if parts:
    found['by_family'] = _parts(records, lambda r: r['family'])
    found['by_layer'] = _parts(records, lambda r: r['layer'])
  return found


def _parts(
  records: Sequence[Record], key: Callable[[Record], Hashable]
) -> dict[str, Any]:
  groups: dict[Hashable, list[Record]] = {}
  for record in records:
    if key(record) is not None:
      groups.setdefault(key(record), []).append(record)
  return {str(name): totals_of(of, parts=False) for name, of in groups.items()}


def _entries(seen: Sequence[Record]) -> dict[str, Any]:
  """What is counted in entries, and inner products, over all tensors."""
  found: dict[str, Any] = {
    field: np.sum([r[field] for r in seen], axis=0).tolist() for field in COUNTS
  }
  found['below_step'] = _mean(seen, 'below_step', _changed)
  found['sign_conflict'] = _mean(seen, 'sign_conflict', _several)
  n = len(found['changed'])
  norm_N = _root_of_squares([r['delta_norm'] for r in seen])
  inner = np.zeros(n * (n - 1) // 2)
  for r in seen:
    pairs = itertools.combinations(r['delta_norm'], 2)
    inner += [
      (c or 0.0) * a * b for c, (a, b) in zip(r['cos_delta_pairs'], pairs, strict=True)
    ]
  found['cos_delta_pairs'] = [
    x / (a * b) if a * b else None
    for x, (a, b) in zip(inner.tolist(), itertools.combinations(norm_N, 2), strict=True)
  ]
  return found


def _size(record: Record) -> int:
  return math.prod(record['shape'])


def _changed(record: Record) -> np.ndarray:
  """Entries with D != 0, per expert."""
  return _size(record) * (1 - np.asarray(record['zero_fraction']))


def _several(record: Record) -> int:
  return record['several']


def _mean(
  records: Iterable[Record], field: str, weight: Callable[[Record], Any]
) -> Any:
  """Mean weighted by entries; None where there are none."""
  total: Any = 0.0
  parts: Any = 0.0
  for record in records:
    values = np.array(record[field], np.float64)  # None as NaN
    size = np.broadcast_to(np.asarray(weight(record), np.float64), values.shape)
    total = total + size
    parts = parts + np.where(np.isnan(values), 0.0, values) * size
  with np.errstate(invalid='ignore'):
    return _plain(np.where(total > 0, parts / np.where(total > 0, total, 1), np.nan))


def _root_of_squares(values: Sequence[Any]) -> Any:
  return np.sqrt((np.asarray(values, np.float64) ** 2).sum(0)).tolist()


def _spread(values: Sequence[Any]) -> dict[str, Any]:
  """Mean, standard deviation, least and largest over matrices, and how many there are.

  Entry by entry of lists; what does not exist in a matrix is left out.
  """
  stacked = np.array(_same_length(values), np.float64)
  there = ~np.isnan(stacked)
  n = there.sum(0)
  filled = np.where(there, stacked, 0.0)
  mean = filled.sum(0) / np.maximum(n, 1)
  std = np.sqrt((np.where(there, stacked - mean, 0.0) ** 2).sum(0) / np.maximum(n, 1))
  least = np.where(there, stacked, np.inf).min(0)
  most = np.where(there, stacked, -np.inf).max(0)
  numbers = {'mean': mean, 'std': std, 'min': least, 'max': most}
  return {
    **{key: _plain(np.where(n > 0, x, np.nan)) for key, x in numbers.items()},
    'n': n.tolist(),
  }


def _same_length(values: Sequence[Any]) -> Any:
  """Energies of small matrices end early: at all there is. None becomes NaN."""
  if not isinstance(values[0], list) or not any(
    isinstance(x, list) for v in values for x in v
  ):
    return values
  longest = max(len(x) for v in values for x in v if x is not None)
  return [
    [[np.nan] * longest if x is None else [*x, *x[-1:] * (longest - len(x))] for x in v]
    for v in values
  ]


def _plain(values: np.ndarray) -> Any:
  """Numbers and lists for JSON, None for NaN."""
  if values.ndim:
    return [_plain(x) for x in values]
  return None if np.isnan(values) else float(values)
