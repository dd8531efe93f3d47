"""Many small arrays as one: each output of a program costs compiling and every step time.

Floats are packed as the integers of their bits, so that none is changed on its way.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 256  # numbers, up to which an array is packed


class Leaf(NamedTuple):
  """An array of the tree that was packed, without the axis of layers."""

  shape: tuple[int, ...]
  dtype: str
  is_small: bool

  @property
  def n_words(self) -> int:
    """Numbers of `Packed.small_S` that it takes: 4 bytes each, at least one an entry."""
    return math.prod(self.shape) * max(np.dtype(self.dtype).itemsize // 4, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
  """The arrays of a tree: the large ones as they are, the small ones in `small_S`."""

  large: tuple[Any, ...]
  small_S: Any  # uint32
  leaves: tuple[Leaf, ...] = dataclasses.field(metadata={'static': True})
  tree: jax.tree_util.PyTreeDef = dataclasses.field(metadata={'static': True})


def pack(tree: Any) -> Packed:
  """A tree of arrays of bools or numbers of 4 or 8 bytes, of one matrix."""
  values, structure = jax.tree.flatten(tree)
  leaves = tuple(Leaf(x.shape, x.dtype.name, x.size <= SMALL) for x in values)
  words = [_words(x) for x, leaf in zip(values, leaves, strict=True) if leaf.is_small]
  return Packed(
    large=tuple(x for x, leaf in zip(values, leaves, strict=True) if not leaf.is_small),
    small_S=jnp.concatenate(words) if words else jnp.zeros(0, jnp.uint32),
    leaves=leaves,
    tree=structure,
  )


def _words(x: jax.Array) -> jax.Array:
  if x.dtype == bool:
    return x.ravel().astype(jnp.uint32)
  return jax.lax.bitcast_convert_type(x, jnp.uint32).ravel()


def unpack(packed: Packed) -> Any:
  """The tree, of NumPy arrays with a leading axis L, of one that is on the host."""
  small_LxS, large = np.asarray(packed.small_S), iter(packed.large)
  at, values = 0, []
  for leaf in packed.leaves:
    if not leaf.is_small:
      values.append(next(large))
      continue
    words = np.ascontiguousarray(small_LxS[:, at : at + leaf.n_words])
    at += leaf.n_words
    value = words.astype(bool) if leaf.dtype == 'bool' else words.view(leaf.dtype)
    values.append(value.reshape(len(words), *leaf.shape))
  return jax.tree.unflatten(packed.tree, values)
