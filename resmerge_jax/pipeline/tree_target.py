"""What `load_merged` is asked for: a tree of arrays, and which tensor each one is."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from resmerge_jax.errors import InputError
from resmerge_jax.trees.places import places
from resmerge_jax.trees.table import LAYOUTS
from resmerge_jax.trees.tree import Layout, Place
from resmerge_jax.types import TensorRef

Path = tuple[Any, ...]


class Tree:
  """Leaves of a layout by tensor name, and the way back from names to the tree.

  Args:
    name: of LAYOUTS.
    where: the tensors of the merged model.
    config: its config.json.

  Raises:
    InputError: no such layout; a model without that tree; one that stacks layers.
  """

  def __init__(
    self, name: str, where: Mapping[str, TensorRef], config: Mapping[str, Any]
  ):
    if name not in LAYOUTS:
      raise InputError(f'layout: got {name!r}, expected {" | ".join(LAYOUTS)}')
    self.layout = LAYOUTS[name]
    self.places = places(self.layout, where, config)
    stacked = [n for n, place in self.places.items() if place.index]
    if stacked:
      raise InputError(
        f'load_merged: layout {name} stacks all layers in one array',
        why='a stack is complete with the last tensor only, so the host would hold it',
        fix=f'merge with --output_format=orbax --orbax_layout={name}, and restore that',
      )
    self.path_of = {n: _path(self.layout, place) for n, place in self.places.items()}

  def by_name(self, entries: Iterable[tuple[Path, Any]]) -> dict[str, Any]:
    """Entries by tensor name; those that the tree has not, by their path."""
    names = {_key(path): name for name, path in self.path_of.items()}
    return {names.get(_key(path), '/'.join(_key(path))): x for path, x in entries}

  def filled(self, state: Any, arrays: Mapping[str, jax.Array]) -> Any:
    """An nnx.State like this one with these arrays, by tensor name."""
    from flax import nnx

    found = self.by_name(nnx.to_flat_state(state))
    return nnx.from_flat_state(
      {self.path_of[name]: v.replace(arrays[name]) for name, v in found.items()}
    )

  def tree(self, arrays: Mapping[str, jax.Array]) -> Any:
    """By name in the layout hf, else a nested dictionary."""
    if not self.layout.rules:
      return dict(arrays)
    root: dict[Any, Any] = {}
    for name, array in arrays.items():
      *above, last = self.path_of[name]
      node = root
      for part in above:
        node = node.setdefault(part, {})
      node[last] = array
    return root


def as_state(target: Any) -> Any:
  """The nnx.State of a Flax NNX module or state; None for anything else."""
  if 'flax' not in sys.modules:  # then it cannot be one
    return None
  from flax import nnx

  if isinstance(target, nnx.Module):
    return nnx.state(target, nnx.Param)
  return target if isinstance(target, nnx.State) else None


def wanted_of(state: Any, mesh: jax.sharding.Mesh | None) -> Iterator[tuple[Path, Any]]:
  """(path, jax.ShapeDtypeStruct) of each parameter, as its metadata or its array lies.

  One of a shape alone, without a mesh, goes to the default device.
  """
  from flax import nnx

  shardings, first = {}, jax.local_devices()[0]
  if mesh is not None:
    shardings = dict(nnx.to_flat_state(nnx.get_named_sharding(state, mesh)))
  for path, variable in nnx.to_flat_state(state):
    value = variable.get_value()
    lies = getattr(value, 'sharding', None) or SingleDeviceSharding(first)
    if shardings:
      lies = shardings[path].get_value()
    yield path, jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=lies)


def _path(layout: Layout, place: Place) -> Path:
  """Numbers of layers are integers, as in a pure dictionary of Flax."""
  path = place.path[:-1] if layout.tail else place.path
  if not layout.rules:
    return path
  return tuple(int(part) if part.isdecimal() else part for part in path)


def _key(path: Path) -> tuple[str, ...]:
  return tuple(map(str, path))


def flat(target: Any, above: Path = ()) -> Iterator[tuple[Path, Any]]:
  """(path, entry) of a nested mapping."""
  if not isinstance(target, Mapping):
    yield above, target
    return
  for key, entry in target.items():
    yield from flat(entry, (*above, key))
