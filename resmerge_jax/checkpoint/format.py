"""Bytes of one safetensors file: u64 header length, JSON header, tensor data.

The JSON maps each tensor name to its dtype, shape and [begin, end) byte offsets, counted
from the end of the header. Data is gap free; nothing requires it to be aligned.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from resmerge_jax.checkpoint.files import File, OpenFile, open_file, read_at
from resmerge_jax.checkpoint.json_object import load_json_object
from resmerge_jax.checkpoint.remote import RemoteFile
from resmerge_jax.errors import InputError, StoppedError
from resmerge_jax.types import DTYPES, TensorRef

# Limit of the safetensors library: a corrupt length must not allocate all memory.
MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_COPY_AGAIN = 'download or copy the file again'
_WRITE_AGAIN = 'write the file again with the safetensors library'


@dataclasses.dataclass(frozen=True)
class Header:
  """What one file declares. `raw` is everything before the data, `data_start` bytes."""

  tensors: dict[str, TensorRef]  # in offset order
  metadata: dict[str, str]
  raw: bytes

  @property
  def data_start(self) -> int:
    return len(self.raw)


def read_header(path: str | os.PathLike | RemoteFile) -> Header:
  """Reads and checks the header of the safetensors file at `path`, but no weights.

  Raises:
    InputError: the file cannot be read, is truncated, or its header is not valid.
  """
  path = path if isinstance(path, RemoteFile) else pathlib.Path(path)
  try:
    with contextlib.closing(open_file(path)) as file:
      return header_of(path, file)
  except OSError as error:
    raise StoppedError(f'{path}: cannot be read: {error.strerror}') from error


def header_of(path: File, file: OpenFile) -> Header:
  """The same of `file`, which is `path` opened. Raises OSError if it cannot be read."""
  raw = _read_raw(path, file)
  entries, metadata = _parse(path, raw[_LENGTH_BYTES:])
  refs = _refs(path, entries, len(raw))
  end = max((ref.start + ref.nbytes for ref in refs), default=len(raw))
  _check_layout(path, refs, len(raw), file.size(end))
  return Header({ref.name: ref for ref in refs}, metadata, raw)


def encode_header(
  tensors: Iterable[TensorRef],
  metadata: Mapping[str, str] | None = None,
  align: int = 64,
) -> tuple[bytes, tuple[TensorRef, ...]]:
  """Header bytes for `tensors` stored gap free in the given order, data at k * align.

  Returns:
    The bytes up to the data, and the refs with their absolute `start` in that file.
  """
  tensors = tuple(tensors)
  entries: dict[str, Any] = {'__metadata__': dict(metadata)} if metadata else {}
  ends = list(itertools.accumulate((ref.nbytes for ref in tensors), initial=0))
  for ref, begin, end in zip(tensors, ends, ends[1:], strict=False):
    if ref.name in entries or ref.name == '__metadata__':
      raise InputError(f'a safetensors file cannot hold a second {ref.name!r}')
    entries[ref.name] = {
      'dtype': ref.dtype,
      'shape': list(ref.shape),
      'data_offsets': [begin, end],
    }
  text = json.dumps(entries, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-(_LENGTH_BYTES + len(text)) % align)
  if len(text) > MAX_HEADER_BYTES:
    raise InputError(
      f'header of {len(text)} bytes for {len(tensors)} tensors, the safetensors limit '
      f'is {MAX_HEADER_BYTES}',
      fix='write more, smaller files: --max_shard_size',
    )
  raw = len(text).to_bytes(_LENGTH_BYTES, 'little') + text
  starts = (len(raw) + begin for begin in ends)
  placed = zip(tensors, starts, strict=False)
  return raw, tuple(dataclasses.replace(ref, start=start) for ref, start in placed)


def _read_raw(path: File, file: OpenFile) -> bytes:
  """The bytes before the data. Raises InputError or OSError."""
  length = read_at(file, 0, _LENGTH_BYTES)
  if len(length) < _LENGTH_BYTES:
    raise InputError(
      f'{path}: truncated: {len(length)} bytes present, a safetensors file has at least '
      f'{_LENGTH_BYTES}',
      fix=_COPY_AGAIN,
    )
  n_header = int.from_bytes(length, 'little')
  if length == b'version ':
    raise InputError(
      f'{path}: a Git LFS pointer instead of the weights',
      fix='run `git lfs pull` in that folder, or download the file',
    )
  if n_header > MAX_HEADER_BYTES:
    raise InputError(
      f'{path}: header too large: {n_header} bytes declared, the safetensors limit '
      f'is {MAX_HEADER_BYTES}',
      why='the file is damaged, or is not a safetensors file',
      fix=_COPY_AGAIN,
    )
  header = read_at(file, _LENGTH_BYTES, _LENGTH_BYTES + n_header)
  if len(header) < n_header:
    raise InputError(
      f'{path}: truncated inside the header: {_LENGTH_BYTES + n_header} bytes declared, '
      f'{_LENGTH_BYTES + len(header)} bytes present',
      fix=_COPY_AGAIN,
    )
  return length + header


def _parse(path: File, text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
  """Tensor entries and metadata of the header's JSON."""
  duplicates: list[str] = []
  try:
    entries = load_json_object(text, duplicates)
  except ValueError as error:
    raise InputError(
      f'{path}: the header is {error}',
      why='the file is damaged, or is not a safetensors file',
      fix=_COPY_AGAIN,
    ) from error
  if duplicates:
    raise InputError(
      f'{path}: names that occur more than once in the header',
      sorted(set(duplicates)),
      why='which of the tensors is meant is not defined',
      fix=_WRITE_AGAIN,
    )
  metadata = entries.pop('__metadata__', None) or {}
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    raise InputError(
      f'{path}: __metadata__ of the header is not an object of strings',
      fix=_WRITE_AGAIN,
    )
  return entries, metadata


def _refs(path: File, entries: Mapping[str, Any], data_start: int) -> list[TensorRef]:
  """Refs in offset order; every entry is well formed and as long as its shape says."""
  malformed = [
    f'{name!r}: {problem}'
    for name, entry in entries.items()
    if (problem := _entry_problem(name, entry))
  ]
  if malformed:
    raise InputError(
      f'{path}: header entries that cannot be understood', malformed, fix=_WRITE_AGAIN
    )
  wrong, placed = [], []
  for name, entry in entries.items():
    begin, end = entry['data_offsets']
    shape = tuple(entry['shape'])
    ref = TensorRef(name, entry['dtype'], shape, path.name, data_start + begin)
    if ref.nbytes != end - begin:
      wrong.append(
        f'{name}: {ref.dtype} {list(shape)} takes {ref.nbytes} bytes, its offsets '
        f'[{begin}, {end}] span {end - begin}'
      )
    placed.append((begin, end, name, ref))
  if wrong:
    raise InputError(
      f'{path}: tensors whose offsets do not fit their shape and dtype',
      wrong,
      fix=_WRITE_AGAIN,
    )
  return [ref for *_, ref in sorted(placed, key=lambda item: item[:3])]


def _entry_problem(name: str, entry: Any) -> str:
  """What is wrong with one header entry, '' if nothing."""
  if not name.isprintable():  # includes lone surrogates, which UTF-8 cannot hold
    return 'a name with control characters'
  if not isinstance(entry, dict):
    return f'{type(entry).__name__} instead of an object'
  missing = {'dtype', 'shape', 'data_offsets'} - entry.keys()
  if missing:
    return f'no {", ".join(sorted(missing))}'
  if entry['dtype'] not in list(DTYPES):
    return f'unknown dtype {entry["dtype"]!r} (known: {", ".join(DTYPES)})'
  if not _is_sizes(entry['shape']):
    return f'shape {entry["shape"]!r} is not a list of sizes'
  offsets = entry['data_offsets']
  if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    return f'data_offsets {offsets!r} is not [begin, end]'
  # Offsets are 64-bit in every reader; a product beyond that would overflow there.
  if max(offsets) >= 2**63 or math.prod(entry['shape']) >= 2**63:
    return 'larger than any file'
  return ''


def _is_sizes(value: Any) -> bool:
  return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_layout(
  path: File, refs: list[TensorRef], data_start: int, n_file: int
) -> None:
  """Raises unless the tensors cover the data section exactly once."""
  problems, end = [], data_start
  for before, ref in zip([None, *refs], refs, strict=False):
    where = f'bytes {ref.start} to {ref.start + ref.nbytes}'
    if ref.start < end:
      problems.append(f'{ref.name} ({where}) overlaps {before and before.name}')
    elif ref.start > end:
      problems.append(f'{ref.start - end} bytes before {ref.name} belong to no tensor')
    end = max(end, ref.start + ref.nbytes)
  if not problems and end > n_file:
    raise InputError(
      f'{path}: truncated: {end} bytes declared, {n_file} bytes present',
      fix=_COPY_AGAIN,
    )
  problems += [
    f'{ref.name} ends at byte {ref.start + ref.nbytes}, the file has {n_file}'
    for ref in refs
    if ref.start + ref.nbytes > n_file
  ]
  if end < n_file:
    problems.append(f'{n_file - end} bytes after the last tensor belong to no tensor')
  if problems:
    raise InputError(
      f'{path}: tensor offsets overlap, leave holes or lie outside the file',
      problems,
      why='bytes of one tensor would be read as another',
      fix=_WRITE_AGAIN,
    )
