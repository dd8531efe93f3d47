"""Where every tensor of the output lies, fixed before the first weight is read."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

from resmerge_jax.checkpoint.format import encode_header
from resmerge_jax.types import TensorRef, find

SINGLE_NAME = 'model.safetensors'
INDEX_NAME = f'{SINGLE_NAME}.index.json'
DEFAULT_SHARD_SIZE = 5 * 10**9  # where no files of a base say otherwise
_METADATA = {'format': 'pt'}  # transformers refuses files that do not name a framework


@dataclasses.dataclass(frozen=True)
class ShardFile:
  """One file: header bytes, then its tensors without gaps; `nbytes` counts both.

  `group`: where processes write files of their own, files of one group have one owner;
  '' is a group of this file alone.
  """

  name: str
  header: bytes
  tensors: tuple[TensorRef, ...]  # in offset order, `start` counted from the file's
  group: str = ''

  @property
  def nbytes(self) -> int:
    return len(self.header) + sum(ref.nbytes for ref in self.tensors)


@dataclasses.dataclass(frozen=True)
class OutputLayout:
  """All weight files of the output, and the text of its index if it has one.

  `recipe` are the files of a saved recipe (plan/recipe_layout.py), in a folder below:
  there no loader takes them for weights. `parts` names their tensors by the tensor of
  the model and the row from which on they hold. `texts`: further files that are known
  before a weight is read. A tensor may lie in two files, one of each format.
  """

  shards: tuple[ShardFile, ...]
  index: bytes | None
  recipe: tuple[ShardFile, ...] = ()
  parts: Mapping[tuple[str, int], Mapping[str, str]] = dataclasses.field(
    default_factory=dict
  )
  texts: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

  @property
  def files(self) -> tuple[ShardFile, ...]:
    return (*self.shards, *self.recipe)

  @functools.cached_property
  def places(self) -> Mapping[str, tuple[TensorRef, ...]]:
    """Output files and absolute starts of each tensor."""
    found: dict[str, tuple[TensorRef, ...]] = {}
    for shard in self.files:
      for ref in shard.tensors:
        found[ref.name] = (*found.get(ref.name, ()), ref)
    return found

  @functools.cached_property
  def where(self) -> Mapping[str, TensorRef]:
    """The first of the places of each tensor."""
    return {name: refs[0] for name, refs in self.places.items()}

  def place(self, name: str) -> tuple[TensorRef, int]:
    """The tensor that is `name` or has it as a part, and its row where that begins."""
    ref, part = find(self.where, name)
    return ref, ref.first_row(part)

  @functools.cached_property
  def group_of(self) -> Mapping[str, str]:
    """The group of files in which each tensor lies."""
    return {
      ref.name: shard.group or shard.name
      for shard in self.shards
      for ref in shard.tensors
    }

  def group(self, name: str) -> str:
    """The group of files of a tensor, or of the one that has it as a part."""
    return self.group_of[self.place(name)[0].name]

  @functools.cached_property
  def groups(self) -> Mapping[str, int]:
    """Groups of weight files that one process writes, and their bytes."""
    sizes: dict[str, int] = {}
    for shard in self.shards:
      group = shard.group or shard.name
      sizes[group] = sizes.get(group, 0) + shard.nbytes
    return sizes

  @property
  def written_texts(self) -> dict[str, bytes]:
    index = {} if self.index is None else {INDEX_NAME: self.index}
    return {**index, **self.texts}

  @property
  def nbytes(self) -> int:
    """Bytes of all these files, the index and further texts."""
    return sum(shard.nbytes for shard in self.files) + sum(
      len(text) for text in self.written_texts.values()
    )


def lay_out(
  tensors: Sequence[TensorRef],
  max_shard_size: int | None = None,
  single_name: str = SINGLE_NAME,
) -> OutputLayout:
  """Lays `tensors` out in the given order, which is also their order inside a file.

  Args:
    tensors: output dtype and shape; `file` is the name of the base's shard file.
    max_shard_size: tensor bytes per file (headers not counted, as in transformers). A
      tensor is never split: a larger one gets its own file. None keeps the base's files.
    single_name: the weight file that loaders find without an index. Every other set of
      files gets one.
  """
  assert tensors, 'a checkpoint without tensors is refused when it is opened'
  if max_shard_size is None:
    groups = _group_by_file(tensors)
  else:
    groups = _fill(tensors, max_shard_size, single_name)
  shards = tuple(_shard(name, refs) for name, refs in groups.items())
  indexed = [shard.name for shard in shards] != [single_name]
  return OutputLayout(shards, _index(shards) if indexed else None)


def _group_by_file(tensors: Sequence[TensorRef]) -> dict[str, list[TensorRef]]:
  groups: dict[str, list[TensorRef]] = {}
  for ref in tensors:
    groups.setdefault(ref.file, []).append(ref)
  return groups


def _fill(
  tensors: Sequence[TensorRef], max_shard_size: int, single_name: str
) -> dict[str, list[TensorRef]]:
  """Greedy: a file is closed when the next tensor would not fit."""
  groups: list[list[TensorRef]] = [[]]
  n_bytes = 0
  for ref in tensors:
    if groups[-1] and n_bytes + ref.nbytes > max_shard_size:
      groups.append([])
      n_bytes = 0
    groups[-1].append(ref)
    n_bytes += ref.nbytes
  if len(groups) == 1:
    return {single_name: groups[0]}
  stem, suffix = (
    pathlib.PurePath(single_name).stem,
    pathlib.PurePath(single_name).suffix,
  )
  return {
    f'{stem}-{i:05d}-of-{len(groups):05d}{suffix}': refs
    for i, refs in enumerate(groups, 1)
  }


def _shard(name: str, refs: Sequence[TensorRef]) -> ShardFile:
  header, placed = encode_header(
    (dataclasses.replace(ref, file=name) for ref in refs), _METADATA
  )
  return ShardFile(name, header, placed)


def _index(shards: Sequence[ShardFile]) -> bytes:
  """The index as transformers writes it: sorted keys, indent 2, final newline."""
  refs = [ref for shard in shards for ref in shard.tensors]
  content = {
    'metadata': {
      'total_parameters': sum(ref.size for ref in refs),
      'total_size': sum(ref.nbytes for ref in refs),
    },
    'weight_map': {ref.name: ref.file for ref in refs},
  }
  return (json.dumps(content, indent=2, sort_keys=True) + '\n').encode()
