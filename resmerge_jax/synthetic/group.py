"""Writes the folders of a synthetic expert group, a block of rows at a time."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.format import encode_header
from resmerge_jax.errors import InputError
from resmerge_jax.sizes import format_size, parse_size
from resmerge_jax.synthetic import tokenizer, weights
from resmerge_jax.synthetic.shapes import SHAPES, ModelShape
from resmerge_jax.types import DTYPES, TensorRef

_EXPERT_NAMES = ('math', 'code', 'tool')
_CODES = {'bfloat16': 'BF16', 'float16': 'F16', 'float32': 'F32'}


def make_group(
  directory: str | os.PathLike,
  shape: str | ModelShape,
  n_experts: int = 3,
  tied: bool | None = None,
  layers: int | None = None,
  seed: int = 0,
  dtype: str = 'bfloat16',
  max_shard_size: str | int | None = None,
  vocab_rows: int | None = None,
) -> tuple[Path, list[Path]]:
  """Writes `directory`/base and one folder per expert; returns their paths.

  `shape` is a key of SHAPES or a ModelShape; `tied`, `layers` and `vocab_rows` replace
  its own. `max_shard_size` is in bytes or text such as '5GB'. Equal arguments give equal bytes.

  Raises:
    InputError: an argument out of range, a non-empty directory, too little disk space.
  """
  root = Path(directory)
  model = _checked_shape(root, shape, n_experts, tied, layers, vocab_rows, seed, dtype)
  limit = parse_size(model.max_shard_size if max_shard_size is None else max_shard_size)
  shards = _split_into_shards(model, _CODES[dtype], limit)
  ids = [_EXPERT_NAMES[i] if i < len(_EXPERT_NAMES) else i for i in range(n_experts)]
  paths = [root / 'base', *(root / f'expert_{i}' for i in ids)]
  _require_space(root, len(paths) * sum(ref.nbytes for s in shards for ref in s))

  folders = [_ShardWriter(path, shards) for path in paths]
  try:
    _write_weights(folders, seed)
  finally:
    for folder in folders:
      folder.close()
  for path in paths:
    _write_side_files(path, model, dtype, shards)
  return paths[0], paths[1:]


def _checked_shape(
  root: Path,
  shape: str | ModelShape,
  n_experts: int,
  tied: bool | None,
  layers: int | None,
  vocab_rows: int | None,
  seed: int,
  dtype: str,
) -> ModelShape:
  model = SHAPES.get(shape) if isinstance(shape, str) else shape
  problems = []
  if model is None:
    problems.append(f'shape {shape!r}: expected one of {", ".join(SHAPES)}')
  else:
    problems += reduction_problems(model, layers, vocab_rows)
  if n_experts < 1:
    problems.append(f'{n_experts} experts: expected at least 1')
  if seed < 0:
    problems.append(f'seed {seed}: expected 0 or more')
  if dtype not in _CODES:
    problems.append(f'dtype {dtype!r}: expected one of {", ".join(_CODES)}')
  if root.is_file():
    problems.append(f'output {root}: is a file, expected a folder')
  elif root.is_dir() and any(root.iterdir()):
    problems.append(f'output {root}: not empty; remove it or name another folder')
  if problems or model is None:
    raise InputError('cannot make the expert group', problems)
  return dataclasses.replace(
    model,
    tied=model.tied if tied is None else tied,
    layers=layers or model.layers,
    vocab=vocab_rows or model.vocab,
  )


def reduction_problems(
  model: ModelShape, layers: int | None, vocab_rows: int | None
) -> list[str]:
  """Why `model` cannot be reduced to so many layers and rows of its vocabulary."""
  problems = []
  if layers is not None and not 1 <= layers <= model.layers:
    problems.append(f'layers {layers}: expected 1 to {model.layers}')
  # The shared tokenizer's ids need some.
  if vocab_rows is not None and not tokenizer.ROWS <= vocab_rows <= model.vocab:
    problems.append(
      f'vocab_rows {vocab_rows}: expected {tokenizer.ROWS} to {model.vocab}'
    )
  return problems


def _require_space(root: Path, n_bytes: int) -> None:
  root.mkdir(parents=True, exist_ok=True)
  free = shutil.disk_usage(root).free
  if free < n_bytes:
    raise InputError(
      f'not enough space for the expert group in {root}: it takes '
      f'{format_size(n_bytes)}, {format_size(free)} are free',
      fix='free some, name another folder, or make fewer layers or experts',
    )


def _split_into_shards(
  model: ModelShape, code: str, limit: int
) -> tuple[tuple[TensorRef, ...], ...]:
  """Tensors of each file, in order; a file is full when the next tensor exceeds it."""
  shards: list[list[TensorRef]] = [[]]
  filled = 0
  for name, shape in model.tensors():
    ref = TensorRef(name, code, shape)
    if shards[-1] and filled + ref.nbytes > limit:
      shards.append([])
      filled = 0
    shards[-1].append(ref)
    filled += ref.nbytes
  total = len(shards)
  files = [f'model-{i + 1:05}-of-{total:05}.safetensors' for i in range(total)]
  if total == 1:
    files = ['model.safetensors']
  return tuple(
    tuple(dataclasses.replace(ref, file=file) for ref in shard)
    for file, shard in zip(files, shards, strict=True)
  )


class _ShardWriter:
  """The preallocated shard files of one folder; blocks may come in any order."""

  def __init__(self, path: Path, shards: Sequence[Sequence[TensorRef]]):
    path.mkdir()
    self.id = path.name
    self.refs: dict[str, TensorRef] = {}
    self._descriptors: dict[str, int] = {}
    for shard in shards:
      header, refs = encode_header(shard, {'format': 'pt'})
      file = refs[0].file
      descriptor = os.open(path / file, os.O_CREAT | os.O_WRONLY, 0o644)
      self._descriptors[file] = descriptor
      os.ftruncate(descriptor, refs[-1].start + refs[-1].nbytes)
      _write_at(descriptor, header, 0)
      self.refs |= {ref.name: ref for ref in refs}

  def write(self, block: weights.Block, values: np.ndarray) -> None:
    ref = self.refs[block.name]
    start = ref.start + block.start * (ref.nbytes // ref.shape[0])
    _write_at(self._descriptors[ref.file], values.tobytes(), start)

  def close(self) -> None:
    for descriptor in self._descriptors.values():
      os.close(descriptor)


def _write_at(descriptor: int, data: bytes, start: int) -> None:
  view = memoryview(data)
  while view:
    written = os.pwrite(descriptor, view, start)
    view, start = view[written:], start + written


def _write_weights(folders: Sequence[_ShardWriter], seed: int) -> None:
  base, *experts = folders

  def write(block: weights.Block) -> None:
    dtype = DTYPES[base.refs[block.name].dtype]
    stored = weights.base_block(seed, block).astype(dtype)
    base.write(block, stored)
    rounded = stored.astype(np.float32)
    for expert in experts:
      update = weights.update_block(seed, expert.id, block)
      update += rounded
      expert.write(block, update.astype(dtype))

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for _ in pool.map(write, _all_blocks(base.refs)):
      pass


def _all_blocks(refs: Mapping[str, TensorRef]) -> Iterator[weights.Block]:
  for ref in refs.values():
    yield from weights.blocks(ref.name, ref.shape)


def _write_side_files(
  path: Path, model: ModelShape, dtype: str, shards: Sequence[Sequence[TensorRef]]
) -> None:
  if len(shards) > 1:
    refs = [ref for shard in shards for ref in shard]
    index = {
      'metadata': {'total_size': sum(ref.nbytes for ref in refs)},
      'weight_map': {ref.name: ref.file for ref in refs},
    }
    _write_json(path / 'model.safetensors.index.json', index)
  for name, content in tokenizer.tokenizer_files().items():
    _write_json(path / name, content)
  ids = {'bos_token_id': tokenizer.END_OF_TEXT_ID}
  ends = [tokenizer.END_OF_TURN_ID, tokenizer.END_OF_TEXT_ID]
  generation = {**ids, 'eos_token_id': ends, 'pad_token_id': tokenizer.END_OF_TEXT_ID}
  _write_json(path / 'generation_config.json', generation)
  _write_json(path / 'config.json', model.config(dtype))  # last: makes it a model


def _write_json(path: Path, content: Any) -> None:
  text = json.dumps(content, indent=2, ensure_ascii=False)
  path.write_text(text + '\n', encoding='utf-8')
