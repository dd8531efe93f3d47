"""config.json of the output, and the files copied from the base as they are."""

import collections
import copy
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.errors import StoppedError
from resmerge_jax.types import TensorRef

_DTYPE_FIELDS = ('dtype', 'torch_dtype')
_DTYPE_NAMES = {
  'BF16': 'bfloat16',
  'F16': 'float16',
  'F32': 'float32',
  'F64': 'float64',
}
_TIE = 'tie_word_embeddings'


def output_config(
  config: Mapping[str, Any],
  output_dtype: str,
  tensors: Collection[TensorRef],
  out_rows: int | None = None,
  heads_equal: bool | None = None,
) -> tuple[bytes, list[str]]:
  """config.json of the output: the base's, with what the merge made untrue corrected.

  Args:
    config: the base's, its fields and their order are kept.
    output_dtype: 'bfloat16', 'float16', 'float32', or 'base' for the stored dtypes.
    tensors: all tensors of the output.
    out_rows: vocabulary rows of the output, None if they are the base's.
    heads_equal: whether the stored lm_head equals the embedding, None if not compared.

  Returns:
    The file's bytes, and a note for every changed or doubtful field.
  """
  content = copy.deepcopy(dict(config))
  notes = _set_dtype(content, output_dtype, tensors)
  notes += _set_tie(content, [ref.name for ref in tensors], heads_equal)
  if out_rows is not None:
    notes += _set_vocab_size(content, out_rows)
  return (json.dumps(content, indent=2) + '\n').encode(), notes


def copied_side_files(base: Checkpoint) -> dict[str, bytes | pathlib.Path]:
  """Name in the output -> file of the base that is copied, or its content if remote.

  Raises:
    StoppedError: a remote file cannot be read.
  """
  folder = base.path
  if folder is None:
    return {}
  if isinstance(folder, pathlib.Path):
    return {name: folder / name for name in base.side_files}
  try:
    return {name: (folder / name).read_bytes() for name in base.side_files}
  except OSError as error:
    raise StoppedError(f'{error.filename} cannot be read: {error.strerror}') from error


def _sections(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
  """The config and its nested configs (text_config, vision_config, ...)."""
  yield '', content
  for name, value in content.items():
    if name.endswith('_config') and isinstance(value, dict):
      yield f'{name}.', value


def _set_dtype(
  content: dict[str, Any], output_dtype: str, tensors: Collection[TensorRef]
) -> list[str]:
  """transformers 5 reads `dtype` before `torch_dtype`, version 4 only the latter.

  So both are set where present. A config with neither gets `torch_dtype`, which all
  versions read; without it version 4 would load the output as float32.
  """
  stored: collections.Counter[str] = collections.Counter()
  for ref in tensors:
    if ref.dtype in _DTYPE_NAMES:
      stored[_DTYPE_NAMES[ref.dtype]] += ref.nbytes
  fields = [
    (prefix, section, field)
    for prefix, section in _sections(content)
    for field in _DTYPE_FIELDS
    if field in section
  ]
  if output_dtype != 'base' and not fields:
    content['torch_dtype'] = output_dtype
    return [f'config.json: torch_dtype {output_dtype} added']
  notes = []
  for prefix, section, field in fields:
    stated = section[field]
    plain = stated.removeprefix('torch.') if isinstance(stated, str) else stated
    wanted = output_dtype
    if output_dtype == 'base':  # the base's word holds unless nothing is stored so
      stale = isinstance(plain, str) and stored and plain not in stored
      wanted = stored.most_common(1)[0][0] if stale else plain
    if plain != wanted:
      section[field] = wanted
      notes.append(f'config.json: {prefix}{field} {plain} -> {wanted}')
  return notes


def _set_tie(
  content: dict[str, Any], names: list[str], heads_equal: bool | None
) -> list[str]:
  """Makes `tie_word_embeddings` agree with the stored head, without inventing one.

  transformers 5 ties a stored head that equals the embedding without a word, and warns
  and does not tie if they differ; version 4 ties in both cases, losing the head.
  """
  owners = [(prefix, s) for prefix, s in _sections(content) if _TIE in s]
  prefix, owner = owners[0] if owners else ('', {})
  tied, field = owner.get(_TIE), f'config.json: {prefix}{_TIE}'
  if any(name.split('.')[-2:] == ['lm_head', 'weight'] for name in names):
    if not tied:
      return []
    if heads_equal is False:
      owner[_TIE] = False
      return [f'{field} true -> false: the stored lm_head differs from the embedding']
    found = 'equals the embedding' if heads_equal else 'was not compared with it'
    return [
      f'{field} is true and an lm_head is stored, which {found}: loaders tie them'
    ]
  if tied or not _is_causal(content):
    return []
  if tied is None:
    return [
      f'config.json does not state {_TIE} and no lm_head is stored: the loader decides '
      'whether the head is the embedding or random (the base has the same gap)'
    ]
  return [
    f'{field} is false but no lm_head is stored: loaders will create a random head (the '
    'base has the same gap)'
  ]


def _is_causal(content: Mapping[str, Any]) -> bool:
  """Whether loaders build a language-model head."""
  architectures = content.get('architectures') or ['ForCausalLM']
  return any(
    'ForCausalLM' in name or 'ForConditional' in name for name in architectures
  )


def _set_vocab_size(content: dict[str, Any], out_rows: int) -> list[str]:
  owners = [(prefix, s) for prefix, s in _sections(content) if 'vocab_size' in s]
  owners = [(p, s) for p, s in owners if p in ('', 'text_config.')] or [('', content)]
  notes = []
  for prefix, section in owners:
    before = section.get('vocab_size')
    if before != out_rows:
      section['vocab_size'] = out_rows
      notes.append(f'config.json: {prefix}vocab_size {before} -> {out_rows}')
  return notes
