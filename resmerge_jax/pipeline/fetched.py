"""A step's result on the host: the layers and rows that this process holds of it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from resmerge_jax.pipeline.kernel_spec import staged_dtype
from resmerge_jax.pipeline.kernels import Found, Merged
from resmerge_jax.pipeline.packed import unpack
from resmerge_jax.plan.stacks import Step


class Piece(NamedTuple):
  """Merged rows of one layer; neither counts padding."""

  layer: int
  rows: range
  out_RxC: np.ndarray


@dataclasses.dataclass(frozen=True)
class Fetched:
  """Numbers of the layers `layers` (places in the step), and the rows held of each.

  `owned`: layers that no other process reports. Where rows of a layer lie on devices
  of several processes, each holds its own pieces and all of them the same numbers.
  """

  layers: tuple[int, ...]
  owned: tuple[bool, ...]
  found: Found
  pieces: tuple[Piece, ...]

  def writable(self) -> 'Fetched':
    """With own copies of the numbers."""
    return dataclasses.replace(self, found=jax.tree.map(np.array, self.found))


def fetch(step: Step, merged: Merged) -> Fetched:
  """Waits for a step and takes what lies on this process' devices, weights uncopied."""
  held, owned, (packed, stats) = held_numbers(step, (merged.found, merged.stats))
  found: Found = unpack(packed)
  return Fetched(
    layers=held,
    owned=owned,
    found=found._replace(stats=found.stats | (stats or {})),
    pieces=() if merged.out_LxRxC is None else _pieces(step, merged.out_LxRxC),
  )


def _pieces(step: Step, out_LxRxC: jax.Array) -> tuple[Piece, ...]:
  n_rows = step.row_stop - step.row_start
  pieces = []
  for shard in out_LxRxC.addressable_shards:
    shape = out_LxRxC.shape
    layers, rows = range(shape[0])[shard.index[0]], range(shape[1])[shard.index[1]]
    rows = range(rows.start, min(rows.stop, n_rows))
    data = np.asarray(shard.data).view(staged_dtype(step.stack.out_dtype))
    pieces += [
      Piece(layer, rows, data[at, : len(rows)])
      for at, layer in enumerate(layers)
      if layer < len(step.names) and rows
    ]
  return tuple(pieces)


def held_numbers(
  step: Step, numbers: Any
) -> tuple[tuple[int, ...], tuple[bool, ...], Any]:
  """Waits, and takes of arrays with an entry per layer what this process holds.

  Returns the places of these layers in the step, whether this process reports them, and
  the arrays on the host, without padding.
  """
  jax.block_until_ready(numbers)
  # Padding, if there is any, is at the end of the last shard.
  held = [
    (layer, shard.replica_id == 0)
    for start, shard in _by_layer(jax.tree.leaves(numbers)[0]).items()
    for layer in range(start, min(start + shard.data.shape[0], len(step.names)))
  ]
  taken = jax.tree.map(lambda x: _held(x)[: len(held)], numbers)
  layers, owned = zip(*held, strict=True) if held else ((), ())
  return layers, owned, taken


def _by_layer(x: jax.Array) -> dict[int, Any]:
  """One addressable shard for each range of layers, by its start, ascending.

  Of several copies the first replica, so that its holder is known as the owner.
  """
  last_first = sorted(x.addressable_shards, key=lambda shard: -shard.replica_id)
  shards = {shard.index[0].start or 0: shard for shard in last_first}
  return dict(sorted(shards.items()))


def _held(x: jax.Array) -> np.ndarray:
  parts = [np.asarray(shard.data) for shard in _by_layer(x).values()]
  return parts[0] if len(parts) == 1 else np.concatenate(parts)
