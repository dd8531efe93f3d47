"""The weights of an Orbax checkpoint, known from its metadata: names, shapes, places.

Reads what Orbax writes (use_ocdbt or not, Zarr 2 or 3) through TensorStore, without Orbax
and JAX.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from resmerge_jax.checkpoint.json_object import load_json_object
from resmerge_jax.errors import InputError
from resmerge_jax.trees.places import check_model, leaves_of, named
from resmerge_jax.trees.table import LAYOUTS
from resmerge_jax.trees.tree import Place
from resmerge_jax.types import CODES, TensorRef

ROOT_FILES = ('_CHECKPOINT_METADATA', 'orbax.checkpoint', 'commit_success.txt')
_TREE = '_METADATA'
_DEFAULT_ITEM = 'state'
_ARRAYS = ('jax.Array', 'np.ndarray')


@dataclasses.dataclass(frozen=True)
class OrbaxTree:
  """How the arrays of a checkpoint are stored, and where tensors lie in them.

  `item` is the folder of the tree. `complete`: no chunk was left out for being all zeros.
  """

  item: str
  ocdbt: bool
  zarr3: bool
  complete: bool
  layout: str
  places: Mapping[str, Place]


def is_orbax(names: Sequence[str]) -> bool:
  """Whether a folder with these files is the root of an Orbax checkpoint."""
  weights = any(name.endswith('.safetensors') for name in names)
  return not weights and any(name in names for name in ROOT_FILES)


def open_tree(
  folder: pathlib.Path, config: Mapping[str, Any], who: str
) -> tuple[OrbaxTree, dict[str, TensorRef], tuple[str, ...], str]:
  """The tree, its tensors by Hugging Face name, its files, and a hash of its metadata.

  The layout is what `custom_metadata` says under 'layout', else hf.

  Raises:
    InputError: not one readable tree of arrays, or one that its layout does not describe.
  """
  item = _find_item(folder, who)
  content = _load(folder / item / _TREE, who)
  layout = _layout(folder, who)
  check_model(LAYOUTS[layout], config)
  paths = _leaf_paths(content, who)
  stored = OrbaxTree(
    item=item,
    ocdbt=(folder / item / 'manifest.ocdbt').exists(),
    zarr3=content.get('use_zarr3') is True,
    complete=content.get('store_array_data_equal_to_fill_value') is True,
    layout=layout,
    places={},
  )
  arrays = _open_arrays(folder, stored, paths, who)
  found, unknown = named(LAYOUTS[layout], {k: a.shape for k, a in arrays.items()})
  if unknown or not found:
    raise InputError(
      f'{who}: an Orbax tree that is not in layout {layout}: {len(unknown)} leaves are no '
      'weights of it',
      unknown,
      why='the layout is what its custom_metadata says, or hf: a leaf per tensor, under '
      'the names of the safetensors files',
      fix="save the parameters alone, with custom_metadata={'layout': NAME}, NAME one of "
      f'{", ".join(LAYOUTS)}',
    )
  tree = dataclasses.replace(stored, places=found)
  tensors, problems = {}, []
  for place, names in leaves_of(found):
    dtype = CODES.get(arrays[place.path].dtype.numpy_dtype)
    if dtype is None:
      problems.append(f'{"/".join(place.path)}: {arrays[place.path].dtype}')
      continue
    for name in names:
      shape = found[name].hf_shape
      tensors[name] = TensorRef(name, dtype, shape, f'{item}/{".".join(place.path)}')
  if problems:
    raise InputError(f'{who}: leaves of a dtype that cannot be read', problems)
  files = _files(folder, item)
  text = json.dumps([(n, r.dtype, r.shape, found[n].path) for n, r in tensors.items()])
  raw = (folder / item / _TREE).read_bytes() + text.encode()
  return tree, tensors, files, hashlib.sha256(raw).hexdigest()


def array_spec(folder: pathlib.Path, tree: OrbaxTree, path: Sequence[str]) -> Any:
  """What TensorStore needs to open the leaf at `path`."""
  base = folder / tree.item
  name = '.'.join(path)
  if tree.ocdbt:
    database = {'driver': 'file', 'path': f'{base}/'}
    store = {'driver': 'ocdbt', 'base': database, 'path': f'{name}/'}
  else:
    store = {'driver': 'file', 'path': f'{base}/{name}/'}
  return {
    'driver': 'zarr3' if tree.zarr3 else 'zarr',
    'kvstore': store,
    'fill_missing_data_reads': not tree.complete,
  }


def _find_item(folder: pathlib.Path, who: str) -> str:
  try:
    items = sorted(path.parent.name for path in folder.glob(f'*/{_TREE}'))
  except OSError as error:
    raise InputError(f'{who}: cannot be listed: {error.strerror}') from error
  if _DEFAULT_ITEM in items:
    return _DEFAULT_ITEM
  if len(items) != 1:
    raise InputError(
      f'{who}: an Orbax checkpoint with {len(items)} trees of arrays',
      items,
      why='a model is one tree',
      fix='give a checkpoint that holds the parameters of one model alone, such as '
      'orbax.checkpoint.v1.save(DIR, parameters) writes, and config.json beside',
    )
  return items[0]


def _load(path: pathlib.Path, who: str) -> dict[str, Any]:
  try:
    return load_json_object(path.read_bytes())
  except OSError as error:
    raise InputError(f'{who}: {path.name} cannot be read: {error.strerror}') from error
  except ValueError as error:
    raise InputError(f'{who}: {path.name} is {error}') from error


def _layout(folder: pathlib.Path, who: str) -> str:
  path = folder / ROOT_FILES[0]
  custom = _load(path, who).get('custom_metadata') if path.exists() else None
  layout = custom.get('layout', 'hf') if isinstance(custom, dict) else 'hf'
  if layout not in LAYOUTS:
    raise InputError(
      f'{who}: an Orbax tree in layout {layout!r}, known are {", ".join(LAYOUTS)}'
    )
  return layout


def _leaf_paths(content: Mapping[str, Any], who: str) -> list[tuple[str, ...]]:
  """Keys of all leaves, which must be arrays."""
  try:
    leaves = [
      (
        tuple(str(key['key']) for key in leaf['key_metadata']),
        leaf['value_metadata']['value_type'],
      )
      for leaf in content['tree_metadata'].values()
    ]
  except (KeyError, TypeError, AttributeError) as error:
    raise InputError(f'{who}: {_TREE} does not describe a tree: {error!r}') from error
  if others := [f'{"/".join(p)}: {kind}' for p, kind in leaves if kind not in _ARRAYS]:
    raise InputError(
      f'{who}: an Orbax tree with leaves that are no arrays',
      others,
      fix='save the parameters alone',
    )
  return [path for path, _ in leaves]


def _open_arrays(
  folder: pathlib.Path, tree: OrbaxTree, paths: Sequence[tuple[str, ...]], who: str
) -> dict[tuple[str, ...], Any]:
  """Shapes and dtypes, not the numbers."""
  import tensorstore  # slow to import, and few folders need it

  context = tensorstore.Context()
  opening = {
    path: tensorstore.open(array_spec(folder, tree, path), read=True, context=context)
    for path in paths
  }
  found, problems = {}, []
  for path, future in opening.items():
    try:
      found[path] = future.result()
    except ValueError as error:  # of TensorStore, with many lines
      problems.append(f'{"/".join(path)}: {str(error).splitlines()[0][:200]}')
  if problems:
    raise InputError(
      f'{who}: {len(problems)} leaves of the Orbax tree cannot be opened',
      problems,
      fix='the checkpoint is incomplete or damaged: copy it again',
    )
  return found


def _files(folder: pathlib.Path, item: str) -> tuple[str, ...]:
  """All files of the checkpoint, relative to its root."""
  within = [path for path in (folder / item).rglob('*') if not path.is_dir()]
  own = [name for name in ROOT_FILES if (folder / name).exists()]
  return (*own, *sorted(path.relative_to(folder).as_posix() for path in within))
