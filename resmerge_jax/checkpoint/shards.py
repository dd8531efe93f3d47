"""The shard files of a model folder: which they are, and whether the index is true."""

import collections
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from resmerge_jax.checkpoint.files import Folder, each
from resmerge_jax.checkpoint.format import Header, read_header
from resmerge_jax.checkpoint.json_object import load_json_object
from resmerge_jax.errors import InputError
from resmerge_jax.types import TensorRef

INDEX = 'model.safetensors.index.json'
# Mistral publishes its own layout of the same weights beside the Hugging Face files.
_SECOND_COPY = 'consolidated'
_AMBIGUOUS = 'programs that read the index and programs that read every file differ'


@dataclasses.dataclass(frozen=True)
class Shards:
  """Files in name order, their tensors in file order and then offset order."""

  files: tuple[str, ...]
  tensors: dict[str, TensorRef]
  header_sha256: str
  warnings: tuple[str, ...]


def read_shards(folder: Folder, names: Sequence[str], who: str) -> Shards:
  """Headers of the shards among the files `names` of `folder`, checked with the index.

  Raises:
    InputError: a broken file, an index that does not describe the files, or no way to
      tell which of several files are the model.
  """
  present = [name for name in names if name.endswith('.safetensors')]
  second = [name for name in present if name.startswith(_SECOND_COPY)]
  if INDEX in names:
    weight_map = _read_index(folder, names, who)
    files = sorted(set(weight_map.values()))
  else:
    weight_map = None
    files = present if present == second else [n for n in present if n not in second]
    if len(files) != 1:
      raise InputError(
        f'{who}: {len(files)} safetensors files but no {INDEX}',
        files,
        why='which of them belong to the model is not defined',
        fix='keep one file, or save the model again with save_pretrained, which '
        'writes the index',
      )
  ignored = [name for name in second if name not in files]
  others = [n for n in present if n not in files and n not in ignored]
  headers = _read_headers(folder, [*files, *others], who)
  _check_strays({name: headers[name] for name in others}, who)
  headers = {name: headers[name] for name in files}
  if weight_map is not None:
    _check_index(weight_map, headers, who)
  tensors = {n: ref for header in headers.values() for n, ref in header.tensors.items()}
  if not tensors:
    raise InputError(f'{who}: its safetensors files hold no tensors', files)
  digest = hashlib.sha256(b''.join(header.raw for header in headers.values()))
  warning = f'{who}: ignored, a second copy of the weights: {", ".join(ignored)}'
  return Shards(
    tuple(files), tensors, digest.hexdigest(), (warning,) if ignored else ()
  )


def _read_index(folder: Folder, names: Sequence[str], who: str) -> dict[str, str]:
  """The weight map: tensor name -> file, all of them files of this folder."""
  duplicates: list[str] = []
  try:
    index = load_json_object((folder / INDEX).read_bytes(), duplicates)
  except OSError as error:
    raise InputError(f'{who}: {INDEX} cannot be read: {error.strerror}') from error
  except ValueError as error:
    raise InputError(f'{who}: {INDEX} is {error}') from error
  weight_map = index.get('weight_map')
  if not isinstance(weight_map, dict) or not all(
    isinstance(file, str) for file in weight_map.values()
  ):
    raise InputError(f'{who}: {INDEX} has no weight_map of tensor names to file names')
  if duplicates:
    raise InputError(
      f'{who}: names that occur more than once in {INDEX}', sorted(set(duplicates))
    )
  counts = collections.Counter(weight_map.values())
  outside = [file for file in counts if file in ('', '.', '..') or set(file) & {*'/\\'}]
  if outside:
    raise InputError(
      f'{who}: {INDEX} names files outside the folder',
      [f'{file!r} ({_tensors(counts[file])})' for file in outside],
      why='only files at the top of the folder are part of a checkpoint',
      fix='put the shards beside the index and name them without a path',
    )
  missing = [f for f in sorted(counts) if f not in names or not (folder / f).exists()]
  if missing:
    raise InputError(
      f'{who}: {INDEX} names files that are missing',
      [
        f'{file} ({_tensors(counts[file])})'
        + (', a broken symbolic link' if file in names else '')
        for file in missing
      ],
      fix='the download is incomplete: fetch the missing files',
    )
  return weight_map


def _read_headers(folder: Folder, files: Sequence[str], who: str) -> dict[str, Header]:
  """Headers by file name; what is wrong with several files comes as one error."""

  def header_of(file: str) -> Header | InputError:
    try:
      return read_header(folder / file)
    except InputError as error:
      return error

  found = dict(zip(files, each(folder, header_of, files), strict=True))
  headers = {file: h for file, h in found.items() if isinstance(h, Header)}
  errors = [error for error in found.values() if isinstance(error, InputError)]
  if len(errors) == 1:
    text = str(errors[0]).removeprefix(f'{folder}/')
    raise InputError(f'{who}: {text}') from errors[0]
  if errors:
    raise InputError(
      f'{who}: {len(errors)} of {len(files)} safetensors files are broken',
      [
        f'{error.what}{_first(error.problems)}'.removeprefix(f'{folder}/')
        for error in errors
      ],
      fix='download or copy these files again',
    )
  return headers


def _first(problems: Sequence[str]) -> str:
  rest = f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''
  return f': {problems[0]}{rest}' if problems else ''


def _check_strays(headers: Mapping[str, Header], who: str) -> None:
  strays = [
    f'{file} ({_tensors(len(header.tensors))})'
    for file, header in headers.items()
    if header.tensors
  ]
  if strays:
    raise InputError(
      f'{who}: safetensors files with tensors that {INDEX} does not name',
      strays,
      why=_AMBIGUOUS,
      fix='move them out of the folder, or remove the index if it is out of date',
    )


def _check_index(
  weight_map: Mapping[str, str], headers: Mapping[str, Header], who: str
) -> None:
  """Raises unless index and headers agree on every tensor."""
  holders: dict[str, list[str]] = {}
  for file, header in headers.items():
    for name in header.tensors:
      holders.setdefault(name, []).append(file)
  several = [f'{n} in {", ".join(fs)}' for n, fs in holders.items() if len(fs) > 1]
  if several:
    raise InputError(f'{who}: tensors in more than one file', several, why=_AMBIGUOUS)
  problems = [
    f'{name}: the index says {file}, '
    + (f'it is in {holders[name][0]}' if name in holders else 'it is in no file')
    for name, file in weight_map.items()
    if name not in headers[file].tensors
  ]
  problems += [
    f'{name}: in {files[0]}, not in the index'
    for name, files in holders.items()
    if name not in weight_map
  ]
  if problems:
    raise InputError(
      f'{who}: {INDEX} and the files do not agree',
      problems,
      why=_AMBIGUOUS,
      fix='save the model again with save_pretrained, or download it again',
    )


def _tensors(count: int) -> str:
  return f'{count} tensor{"" if count == 1 else "s"}'
