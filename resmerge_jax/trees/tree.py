"""Trees of other stacks: where each tensor of a Hugging Face model lies in them.

A table is a list of rules, one per kind of tensor. `how` says what becomes of its
dimensions: 'NH D -> D N H' reads rows as N heads of H numbers and puts the columns
first. A letter that stands on the right only is stacked: 'F D -> D L F' is one leaf for
all layers. Nothing but the order of numbers changes, so both directions are exact.

Letters: D hidden, F mlp, V vocabulary, N query heads, K key and value heads, H head
dimension; L layers and E experts, which are also the numbers in names and paths.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rule:
  """One kind of tensor: its name, '{L}' for the number of a layer; its path; how."""

  name: str
  path: str
  how: str

  @property
  def rows(self) -> list[str]:
    """Letters of each Hugging Face dimension."""
    return self.how.partition('->')[0].split()

  @property
  def split(self) -> str:
    """Letters of the tensor, in the order in which it is stored."""
    return ''.join(self.rows)

  @property
  def axes(self) -> str:
    """Letters of the leaf's axes."""
    return ''.join(self.how.partition('->')[2].split())

  @property
  def stacked(self) -> list[str]:
    return [letter for letter in self.axes if letter not in self.split]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A table. `model_types`: what it is true of; None: of anything.

  `tail` is a last key that all leaves have; trees without it are read too. `metadata`
  is what the stack wants to find in its checkpoint.
  """

  name: str
  rules: tuple[Rule, ...] = ()
  model_types: frozenset[str] | None = None
  tail: str = ''
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  why_not: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one tensor lies in a leaf of the tree.

  `split`: the shape as which the tensor is read. `axes`: the leaf's axis of each of its
  dimensions. `index`: axis and position on it, for every stacked axis.
  """

  path: tuple[str, ...]
  leaf_shape: tuple[int, ...]
  hf_shape: tuple[int, ...]
  split: tuple[int, ...]
  axes: tuple[int, ...]
  index: tuple[tuple[int, int], ...] = ()

  @property
  def order(self) -> tuple[int, ...]:
    """Axes of the leaf in the order in which the tensor's numbers are stored."""
    return (*(axis for axis, _ in self.index), *self.axes)

  @property
  def part(self) -> tuple[int | slice, ...]:
    """Index of the tensor's part of the leaf."""
    found: list[int | slice] = [slice(None)] * len(self.leaf_shape)
    for axis, position in self.index:
      found[axis] = position
    return tuple(found)

  def to_leaf(self, tensor: Any) -> Any:
    """The tensor as it lies in the leaf, without stacked axes. NumPy or JAX array."""
    return tensor.reshape(self.split).transpose(np.argsort(self.axes))

  def from_leaf(self, part: Any) -> Any:
    """The tensor of its part of the leaf, `leaf[place.part]`."""
    order = np.argsort(np.argsort(self.axes))
    return part.transpose(order).reshape(self.hf_shape)
