"""An Orbax checkpoint as files whose places are known before a weight is read.

Every leaf is a Zarr 3 array of its own, without compression. A tensor is one chunk of its
leaf, and a codec tells in which order its axes are stored: that of Hugging Face. So a
merge writes the same bytes at the same offsets as into safetensors, whatever the tree;
transposing and stacking are up to who reads. The names and texts are those that Orbax
writes with use_ocdbt=False (orbax-checkpoint 0.12, checkpoint.v1).
"""

import dataclasses
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from resmerge_jax.plan.layout import OutputLayout, ShardFile
from resmerge_jax.trees.places import leaves_of, places
from resmerge_jax.trees.table import LAYOUTS
from resmerge_jax.trees.tree import Place
from resmerge_jax.types import DTYPES, TensorRef
from resmerge_jax.version import __version__

OUTPUT_FORMATS = ('safetensors', 'orbax', 'both')
FOLDER = 'orbax'  # of the checkpoint within an output in both formats
ITEM = 'state'  # what checkpoint.v1 calls the tree itself
CHECKPOINT_METADATA, TREE_METADATA = '_CHECKPOINT_METADATA', '_METADATA'
INDICATOR = 'orbax.checkpoint'
CHUNK_BYTES = 16 * 2**20  # read at once by who wants a part of a tensor
_LEAST_CHUNK = 2**20
_HANDLER = (
  'orbax.checkpoint.experimental.v1._src.handlers.stateful_checkpointable_handler'
  '.StatefulCheckpointableHandler'
)
# Orbax looks for this name of Zarr 2 below the tree and warns of a malformed checkpoint
# where it finds none, also beside its own Zarr 3 arrays. It stands for an empty array.
_OLD_NAME = '_zarr2/.zarray'
_EMPTY = {
  'zarr_format': 2,
  'shape': [0],
  'chunks': [1],
  'dtype': '|u1',
  'compressor': None,
  'filters': None,
  'fill_value': 0,
  'order': 'C',
}


def lay_out_orbax(
  tensors: Sequence[TensorRef],
  layout: str,
  config: Mapping[str, Any],
  groups: Mapping[str, str],
  folder: str = '',
) -> OutputLayout:
  """All files of the checkpoint of `tensors` in `folder` of the output.

  Args:
    layout: a name of `trees.table.LAYOUTS`.
    config: the model's config.json.
    groups: tensor -> the group of files that one process writes.

  Raises:
    InputError: the model has no such tree.
  """
  root = f'{folder}/' if folder else ''
  refs = {ref.name: ref for ref in tensors}
  found = places(LAYOUTS[layout], refs, config)
  texts, tree = {}, {}
  for place, names in leaves_of(found):
    leaf = f'{root}{ITEM}/{leaf_name(place.path)}'
    texts[f'{leaf}/zarr.json'] = _text(_array(place, refs[names[0]]))
    tree[str(place.path)] = {
      'key_metadata': [{'key': key, 'key_type': 2} for key in place.path],
      # Arrays of NumPy need no devices: they load where there are other ones too.
      'value_metadata': {'value_type': 'np.ndarray', 'skip_deserialize': False},
    }
  made = {'layout': layout, 'resmerge_jax': __version__, **LAYOUTS[layout].metadata}
  texts |= {
    f'{root}{ITEM}/{_OLD_NAME}': _text(_EMPTY),
    f'{root}{ITEM}/{TREE_METADATA}': _text(
      {
        'tree_metadata': tree,
        'use_ocdbt': False,
        'use_zarr3': True,
        'store_array_data_equal_to_fill_value': True,
        'custom_metadata': made,
      }
    ),
    f'{root}{CHECKPOINT_METADATA}': _text(
      {
        'item_handlers': {ITEM: _HANDLER},
        'metrics': {},
        'performance_metrics': {},
        'init_timestamp_nsecs': None,
        'commit_timestamp_nsecs': None,
        'custom_metadata': made,
      }
    ),
    f'{root}{INDICATOR}': b'',
  }
  shards = [
    _chunk(f'{root}{ITEM}/', found[name], ref, groups[name])
    for name, ref in refs.items()
  ]
  return OutputLayout(tuple(shards), None, texts=texts)


def leaf_name(path: Sequence[str]) -> str:
  """The folder of a leaf below the tree."""
  return '.'.join(path)


def _text(content: Any) -> bytes:
  return json.dumps(content).encode()


def _array(place: Place, ref: TensorRef) -> dict[str, Any]:
  """zarr.json of a leaf (the Zarr 3 core specification; codec sharding_indexed 1.0)."""
  shape, stacked = place.leaf_shape, {axis for axis, _ in place.index}
  chunk = [1 if axis in stacked else max(1, n) for axis, n in enumerate(shape)]
  inner = list(chunk)
  if place.axes:
    inner[place.axes[0]] = max(1, place.split[0]) // _n_parts(place, ref)
  little = {'name': 'bytes', 'configuration': {'endian': 'little'}}
  codecs: list[Any] = [little]
  if place.order != tuple(range(len(shape))):
    codecs.insert(0, {'name': 'transpose', 'configuration': {'order': place.order}})
  return {
    'zarr_format': 3,
    'node_type': 'array',
    'shape': shape,
    'data_type': DTYPES[ref.dtype].name,
    'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': chunk}},
    'chunk_key_encoding': {'name': 'default', 'configuration': {'separator': '/'}},
    'fill_value': False if ref.dtype == 'BOOL' else 0,
    'codecs': [
      {
        'name': 'sharding_indexed',
        'configuration': {
          'chunk_shape': inner,
          'codecs': codecs,
          'index_codecs': [little],
          'index_location': 'start',
        },
      }
    ],
    'attributes': {},
  }


def _n_parts(place: Place, ref: TensorRef) -> int:
  """Equal parts along the first dimension that can be read alone: no gaps, no padding."""
  rows = place.split[0] if place.split else 1
  most = min(rows, ref.nbytes // _LEAST_CHUNK)
  parts = [n for n in range(1, most + 1) if rows % n == 0] or [1]
  return next((n for n in parts if ref.nbytes <= n * CHUNK_BYTES), parts[-1])


def _chunk(root: str, place: Place, ref: TensorRef, group: str) -> ShardFile:
  """The file of one tensor: where its parts begin and how long they are, then they."""
  position = [0] * len(place.leaf_shape)
  for axis, at in place.index:
    position[axis] = at
  name = f'{root}{leaf_name(place.path)}/' + '/'.join(['c', *map(str, position)])
  n = _n_parts(place, ref)
  start, nbytes = 16 * n, ref.nbytes // n
  header = b''.join(struct.pack('<QQ', start + i * nbytes, nbytes) for i in range(n))
  assert math.prod(place.split) == ref.size, (place, ref)
  placed = dataclasses.replace(ref, file=name, start=start)
  return ShardFile(name, header, (placed,), group)


def joined(first: OutputLayout, second: OutputLayout) -> OutputLayout:
  """One output with the files of both; tensors are read back from the first."""
  return OutputLayout(
    (*first.shards, *second.shards),
    first.index,
    texts={**first.texts, **second.texts},
  )
