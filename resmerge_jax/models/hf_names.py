"""Where the decoder's parameters are stored: the table of trees/nnx.py, path by path."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from resmerge_jax.host_float import contiguous
from resmerge_jax.models.axes import Path, name_of
from resmerge_jax.trees.nnx import NNX
from resmerge_jax.trees.places import named

_ORDER = {rule.path.replace('/', '.'): n for n, rule in enumerate(NNX.rules)}


class Place(NamedTuple):
  """Where the parameter at `path` is stored: tensor `name`, of shape `hf_shape`.

  `split`: the stored tensor with a dimension per letter. `axes`: the parameter's axis
  of each of them.
  """

  path: Path
  name: str
  leaf_shape: tuple[int, ...]
  hf_shape: tuple[int, ...]
  split: tuple[int, ...]
  axes: tuple[int, ...]

  def to_leaf(self, part: np.ndarray) -> np.ndarray:
    """A part of the split tensor as it lies in the parameter, contiguous."""
    return contiguous(part.transpose(np.argsort(self.axes)))

  def from_leaf(self, leaf: np.ndarray) -> np.ndarray:
    """The stored tensor of a whole parameter, contiguous."""
    return contiguous(leaf.transpose(self.axes)).reshape(self.hf_shape)


def places(shapes: Mapping[Path, tuple[int, ...]]) -> list[Place]:
  """Of each parameter, given its shape; in the order of the forward pass."""
  paths = {tuple(map(str, path)): path for path in shapes}
  found, unknown = named(NNX, {keys: shapes[path] for keys, path in paths.items()})
  assert not unknown, unknown
  listed = [
    Place(paths[p.path], name, p.leaf_shape, p.hf_shape, p.split, p.axes)
    for name, p in found.items()
  ]
  return sorted(listed, key=lambda place: _rank(place.path))


def _rank(path: Path) -> tuple[int, int, int]:
  """Embedding, the layers in turn, what follows them."""
  layer = next((part for part in path if isinstance(part, int)), -1)
  part = 1 if layer >= 0 else 0 if path[0] == 'embed' else 2
  return part, layer, _ORDER[name_of(path, '{L}')]
