"""Whether an output folder still holds what its manifest says was written."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.writers.disk import crc_of_file, crc_of_range, crc_text, joined_crc

MANIFEST = 'manifest.json'


def load_manifest(folder: pathlib.Path) -> dict[str, Any]:
  """The manifest of an output folder, which must have one with checksums.

  Raises:
    InputError: no such folder, or no such manifest.
  """
  path = folder / MANIFEST
  try:
    manifest = json.loads(path.read_bytes())
    for entry in (*manifest['files'].values(), *manifest['tensors'].values()):
      int(entry['crc32'], 16)
  except OSError as error:
    raise InputError(
      f'{path}: cannot be read: {error.strerror}',
      fix='give the output folder of a merge, which holds its manifest.json',
    ) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
      f'{path}: not a manifest with checksums ({error!r})',
      why='without them nothing tells damaged bytes from good ones',
      fix='merge again: every merge writes them',
    ) from error
  return manifest


def bytes_to_verify(manifest: Mapping[str, Any]) -> int:
  return sum(entry['bytes'] for entry in manifest['files'].values())


def verify_folder(
  folder: pathlib.Path,
  manifest: Mapping[str, Any],
  progress: Callable[[str, int], None],
) -> list[str]:
  """Everything that differs from the manifest; empty if all bytes are as written.

  Args:
    manifest: of `load_manifest`.
    progress: called with what was read and its bytes.
  """
  held: dict[str, list[tuple[int, int, str, str]]] = {}
  for name, entry in manifest['tensors'].items():
    place = entry['begin'], entry['end'], name, entry['crc32']
    held.setdefault(entry['file'], []).append(place)
  problems = []
  for name, entry in manifest['files'].items():
    path = folder / name
    try:
      size = path.stat().st_size
      if name in held:
        problems += _weights(path, entry, sorted(held[name]), progress)
      elif crc_text(crc_of_file(path)) != entry['crc32']:
        problems.append(f'{name}: damaged: {_sizes(size, entry["bytes"])}')
    except OSError as error:
      what = 'missing' if isinstance(error, FileNotFoundError) else 'cannot be read'
      within = f' ({len(held[name])} tensors)' if name in held else ''
      problems.append(f'{name}: {what}{within}: {error.strerror}')
    if name not in held:
      progress(name, entry['bytes'])
  problems += [f'{name}: not part of the merge' for name in _strays(folder, manifest)]
  return problems


def _strays(folder: pathlib.Path, manifest: Mapping[str, Any]) -> list[str]:
  """Files that a loader may take for weights of this model."""
  within = {name.split('/')[0] for name in manifest['files'] if '/' in name}
  found = [*folder.glob('*.safetensors*')]
  for name in within:
    found += (path for path in (folder / name).rglob('*') if not path.is_dir())
  names = {path.relative_to(folder).as_posix() for path in found}
  return sorted(names - {*manifest['files']})


def _sizes(got: int, expected: int) -> str:
  if got != expected:
    return f'{got} bytes, expected {expected}'
  return 'its checksum differs'


def _weights(
  path: pathlib.Path,
  entry: Mapping[str, Any],
  places: list[tuple[int, int, str, str]],
  progress: Callable[[str, int], None],
) -> list[str]:
  """Problems of one weight file, tensor by tensor. The header comes before them."""
  problems = []
  with path.open('rb') as file:
    fd = file.fileno()
    size = os.fstat(fd).st_size
    if size != entry['bytes']:
      problems.append(f'{path.name}: {_sizes(size, entry["bytes"])}')
    whole = crc_of_range(fd, 0, places[0][0]) or 0
    for begin, end, name, expected in places:
      crc = crc_of_range(fd, begin, end)
      if crc is None:
        problems.append(f'{name}: cut off at the end of {path.name}')
      elif crc_text(crc) != expected:
        problems.append(
          f'{name}: damaged: crc32 {crc_text(crc)}, expected {expected} '
          f'(bytes {begin} to {end} of {path.name})'
        )
      whole = joined_crc(whole, crc or 0, end - begin)
      progress(name, end - begin)
  if not problems and crc_text(whole) != entry['crc32']:
    problems.append(f'{path.name}: its header is damaged')
  return problems
