"""The comparison of two checkpoints as a table and as JSON."""

import math
from collections.abc import Sequence
from typing import Any

from resmerge_jax.checkpoint.difference import BlockDifference, TensorDifference

_COLUMNS = ('relative', 'max', 'bf16', 'differ', 'nan', 'tensor')


def as_json(found: Sequence[TensorDifference]) -> dict[str, Any]:
  """The comparison as plain JSON: infinite numbers become the string 'inf'."""
  return {
    'equal': all(item.is_equal for item in found),
    'same_bytes': all(item.values and item.values.same_bytes for item in found),
    'tensors': [_tensor_json(item) for item in found],
  }


def _tensor_json(item: TensorDifference) -> dict[str, Any]:
  entry: dict[str, Any] = {'name': item.name, 'equal': item.is_equal}
  for side, ref in (('a', item.a), ('b', item.b)):
    entry[side] = ref and {'dtype': ref.dtype, 'shape': list(ref.shape)}
  if item.values:
    numbers = {
      'relative': item.values.relative,
      'max_abs': item.values.max_abs,
      'max_bf16_units': item.values.max_bf16_units,
      'share_differ': item.values.share_differ,
    }
    entry |= {
      'same_bytes': item.values.same_bytes,
      'nan_on_one_side': item.values.n_nan,
    }
    entry |= {k: n if math.isfinite(n) else str(n) for k, n in numbers.items()}
  return entry


def as_table(found: Sequence[TensorDifference], max_rows: int) -> list[str]:
  """Lines: what cannot be compared, the tensors that differ, a summary."""
  lines = [_mismatch(item) for item in found if item.values is None]
  differ = [(item.values, item.name) for item in found if item.values]
  differ = [(values, name) for values, name in differ if values.n_differ]
  differ.sort(key=lambda pair: (-pair[0].n_nan, -pair[0].relative, pair[1]))
  if differ:
    lines.append('{:>9}  {:>9}  {:>9}  {:>7}  {:>6}  {}'.format(*_COLUMNS))
  lines += [_row(values, name) for values, name in differ[:max_rows]]
  if len(differ) > max_rows:
    lines.append(f'... and {len(differ) - max_rows} more (--rows)')
  n_equal = sum(item.is_equal for item in found)
  n_bytes = sum(bool(item.values and item.values.same_bytes) for item in found)
  lines.append(
    f'{len(found)} tensors: {n_equal} equal ({n_bytes} byte for byte), '
    f'{len(differ)} with other values, {len(found) - n_equal - len(differ)} not '
    'comparable'
  )
  return lines


def _row(values: BlockDifference, name: str) -> str:
  return (
    f'{values.relative:9.3g}  {values.max_abs:9.3g}  {values.max_bf16_units:9.3g}  '
    f'{values.share_differ:7.2%}  {values.n_nan:6}  {name}'
  )


def _mismatch(item: TensorDifference) -> str:
  kind_a, kind_b = (
    f'{ref.dtype} {list(ref.shape)}' if ref else '' for ref in (item.a, item.b)
  )
  if item.a and item.b:
    return f'{item.name}: {kind_a} in A, {kind_b} in B'
  return f'{item.name}: only in {"A" if item.a else "B"}, {kind_a or kind_b}'
