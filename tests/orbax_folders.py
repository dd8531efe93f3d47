"""Orbax checkpoints for tests: saved by Orbax itself, or read by it as a training run."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as classic
from flax import traverse_util
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as checkpoint

from resmerge_jax.trees.places import leaves_of, places
from resmerge_jax.trees.table import LAYOUTS
from resmerge_jax.types import CODES, TensorRef
from tests import groups
from tests.trees import models


def tree(
  layout: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> dict[str, Any]:
  """The tree of a state dict, made in memory with NumPy."""
  refs = {n: TensorRef(n, CODES[a.dtype], a.shape) for n, a in tensors.items()}
  found = places(LAYOUTS[layout], refs, config)
  flat = {}
  for place, names in leaves_of(found):
    leaf = np.zeros(place.leaf_shape, tensors[names[0]].dtype)
    for name in names:
      leaf[found[name].part] = found[name].to_leaf(tensors[name])
    flat[place.path] = leaf
  return traverse_util.unflatten_dict(flat)


def save(
  path: pathlib.Path,
  leaves: Any,
  config: Mapping[str, Any],
  how: str = 'v1',
  layout: str | None = None,
) -> pathlib.Path:
  """Saved as a training stack would, with config.json put beside.

  `how`: 'v1'; 'plain' without OCDBT; 'zarr2', which the classic interface writes.
  """
  custom = None if layout is None else {'layout': layout}
  if how == 'zarr2':
    handler = classic.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)
    classic.Checkpointer(handler).save(path / 'items', leaves)
    (path / '_CHECKPOINT_METADATA').write_text(json.dumps({'custom_metadata': custom}))
  else:
    saving = checkpoint.options.ArrayOptions.Saving(use_ocdbt=how == 'v1')
    options = checkpoint.options.ArrayOptions(saving=saving)
    with checkpoint.Context(array_options=options):
      checkpoint.save(path, leaves, custom_metadata=custom)
  (path / 'config.json').write_text(json.dumps(config))
  return path


def load_sharded(path: pathlib.Path) -> dict[tuple[str, ...], np.ndarray]:
  """Every leaf, restored onto a mesh of eight devices, cut where it can be."""
  auto = (AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=auto)

  def target(leaf: Any) -> jax.ShapeDtypeStruct:
    spec: list[str | None] = []
    for n in leaf.shape:
      free = [
        axis for axis in ('a', 'b') if axis not in spec and not n % mesh.shape[axis]
      ]
      spec.append(free[0] if free else None)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  wanted = jax.tree.map(target, checkpoint.metadata(path).metadata)
  found = checkpoint.load(path, wanted)
  for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert got.sharding == want.sharding
  return traverse_util.flatten_dict(jax.tree.map(np.asarray, found))


def assert_tree(
  path: pathlib.Path, layout: str, kind: str, tensors: Mapping[str, np.ndarray]
) -> None:
  """Orbax restores it: as it is, and onto eight devices."""
  leaves = tree(layout, tensors, models.config(kind))
  want = {'/'.join(k): a for k, a in traverse_util.flatten_dict(leaves).items()}
  loaded = traverse_util.flatten_dict(checkpoint.load(path))
  for got in (loaded, load_sharded(path)):
    groups.assert_same_bits({'/'.join(k): a for k, a in got.items()}, want)
