"""What a checkpoint holds, and where two differ, as text to read."""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence

from resmerge_jax.checkpoint.folder import TOKENIZER_FILES, Checkpoint
from resmerge_jax.checkpoint.group_files import tokenizer_differences
from resmerge_jax.checkpoint.model_config import (
  ARCHITECTURE_FIELDS,
  config_differences,
  ties_embeddings,
)
from resmerge_jax.checkpoint.tied_head import find_head
from resmerge_jax.sizes import format_size
from resmerge_jax.types import TensorRef

_NUMBER = re.compile(r'(?<=\.)\d+(?=\.)|(?<=\[)\d+(?=\]$)')


def fold_names(names: Iterable[str]) -> list[tuple[str, list[str]]]:
  """Groups of names that differ in numbers of layers, experts or parts, in first order.

  Returns:
    Pairs of a pattern such as 'model.layers.{0..23}.mlp.up_proj.weight' and its names.
  """
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(_NUMBER.sub('{}', name), []).append(name)
  folded = []
  for members in groups.values():
    columns = zip(*(map(int, _NUMBER.findall(name)) for name in members), strict=True)
    spans = (_spans(column) for column in columns)
    parts = zip(_NUMBER.split(members[0]), (*spans, ''), strict=True)
    folded.append((''.join(part + span for part, span in parts), members))
  return folded


def _spans(numbers: Sequence[int]) -> str:
  """'{0..3,7}' for 0, 1, 2, 3, 7; a single number stands without braces."""
  runs: list[list[int]] = []
  for number in sorted(set(numbers)):
    if runs and runs[-1][1] == number - 1:
      runs[-1][1] = number
    else:
      runs.append([number, number])
  parts = [str(a) if a == b else f'{a}..{b}' for a, b in runs]
  return (
    parts[0] if parts[0].isdigit() and len(parts) == 1 else f'{{{",".join(parts)}}}'
  )


def describe(checkpoint: Checkpoint) -> list[str]:
  """Lines about files, sizes, model, tensors and warnings of one checkpoint."""
  refs = checkpoint.tensors.values()
  dtypes = collections.Counter(dict.fromkeys((ref.dtype for ref in refs), 0))
  for ref in refs:
    dtypes[ref.dtype] += ref.size
  kinds = ', '.join(f'{dtype} {_count(n)}' for dtype, n in dtypes.most_common())
  n_parameters = sum(ref.size for ref in refs)
  config = checkpoint.config
  fields = ', '.join(
    f'{f} {_value(config[f])}' for f in ARCHITECTURE_FIELDS if f in config
  )
  tokenizer = sorted(TOKENIZER_FILES.intersection(checkpoint.side_files))
  others = [name for name in checkpoint.side_files if name not in tokenizer]
  lines = [
    f'{checkpoint.id}  {checkpoint.path}',
    f'  model       {_adapter(checkpoint) or fields or "not named by config.json"}',
    f'  parameters  {_count(n_parameters)} in {len(refs)} tensors, '
    f'{format_size(checkpoint.nbytes)}: {kinds}',
    *([] if checkpoint.adapter else [f'  head        {_head(checkpoint)}']),
    f'  tokenizer   {", ".join(tokenizer) or "none"}',
    f'  copied too  {", ".join(others) or "nothing"}',
    *_storage(checkpoint),
    '  tensors',
    *table(_tensor_rows(checkpoint.tensors)),
  ]
  return lines + [f'  warning: {warning}' for warning in checkpoint.warnings]


def describe_differences(a: Checkpoint, b: Checkpoint) -> list[str]:
  """Lines about how `b` differs from `a`, as far as the headers tell."""
  lines = [
    f'  config.json {field}: {_value(here)} -> {_value(there)}'
    for field, here, there in config_differences(a.config, b.config)
  ]
  for what, side, against in (('missing', a, b), ('extra', b, a)):
    only = {n: ref for n, ref in side.tensors.items() if n not in against.tensors}
    lines += [f'  {what}: {"  ".join(row)}' for row in _tensor_rows(only)]
  pairs: dict[tuple[str, str], list[str]] = {}
  for name, ref in a.tensors.items():
    other = b.tensors.get(name)
    if other and (other.shape, other.dtype) != (ref.shape, ref.dtype):
      pairs.setdefault((_kind(ref), _kind(other)), []).append(name)
  for (here, there), names in pairs.items():
    lines += [f'  {name}: {here} -> {there}' for name, _ in fold_names(names)]
  lines += [f'  {name}: other bytes' for name in tokenizer_differences(a, b)]
  for what, side, against in (('missing', a, b), ('extra', b, a)):
    files = [name for name in side.side_files if name not in against.side_files]
    lines += [f'  {what} file: {name}' for name in files]
  same = '  nothing: equal names, shapes, dtypes, tokenizer and model config'
  return [f'{b.id} against {a.id}', *(lines or [same])]


def _adapter(checkpoint: Checkpoint) -> str:
  """A LoRA adapter in a line; '' for a model."""
  config = checkpoint.adapter
  if config is None:
    return ''
  scale = 'alpha / sqrt(rank)' if config.rank_stabilised else 'alpha / rank'
  patterns = {'rank': config.rank_pattern, 'alpha': config.alpha_pattern}
  but = [
    f'{what} {value} of {key}'
    for what, of in patterns.items()
    for key, value in of.items()
  ]
  return ', '.join(
    [
      f'a LoRA adapter of {config.base_name or "a base not named"}',
      f'rank {config.rank}',
      f'alpha {config.alpha}',
      f'scale {scale}',
      *but,
    ]
  )


def _head(checkpoint: Checkpoint) -> str:
  ties, head = ties_embeddings(checkpoint.config), find_head(checkpoint)
  said = {True: 'tied to the embedding', False: 'not tied', None: 'tied or not: unsaid'}
  return f'{said[ties]} by config.json; {head or "no lm_head.weight"} stored'


def _storage(checkpoint: Checkpoint) -> list[str]:
  """The files that hold the weights."""
  tree = checkpoint.tree
  if tree is None:
    rows = [_shard_row(checkpoint, file) for file in checkpoint.shard_files]
    return ['  shards', *table(rows)]
  n_leaves = len({place.path for place in tree.places.values()})
  return [
    f'  orbax       layout {tree.layout}, {n_leaves} leaves in '
    f'{len(checkpoint.shard_files)} files of {tree.item}/ and its root'
  ]


def _shard_row(checkpoint: Checkpoint, file: str) -> tuple[str, ...]:
  refs = [ref for ref in checkpoint.tensors.values() if ref.file == file]
  n_bytes = sum(ref.nbytes for ref in refs)
  return file, f'{len(refs)} tensors', format_size(n_bytes)


def _tensor_rows(tensors: Mapping[str, TensorRef]) -> list[tuple[str, ...]]:
  """Rows of pattern, count and kind; one pattern per shape and dtype."""
  kinds: dict[tuple[str, str], list[str]] = {}
  for name, ref in tensors.items():
    kinds.setdefault((_NUMBER.sub('{}', name), _kind(ref)), []).append(name)
  rows: list[tuple[str, ...]] = []
  for (_, kind), names in kinds.items():
    rows += [(p, f'{len(found)} x {kind}') for p, found in fold_names(names)]
  return rows


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '    ' + '  '.join(f'{c:{w}}' for c, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  ]


def _kind(ref: TensorRef) -> str:
  return f'{list(ref.shape)} {ref.dtype}'


def _value(value: object) -> str:
  if isinstance(value, list) and all(isinstance(item, str) for item in value):
    return '+'.join(value)
  return 'absent' if value is None else str(value)


def _count(n: int) -> str:
  for unit, size in (('B', 10**9), ('M', 10**6)):
    if n >= size:
      return f'{n / size:.3g} {unit}'
  return str(n)
