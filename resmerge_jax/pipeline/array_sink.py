"""Merged bytes as sharded arrays: a tensor is put on its devices once it is complete."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resmerge_jax.host_float import contiguous
from resmerge_jax.plan.stacks import Step
from resmerge_jax.trees.tree import Place
from resmerge_jax.types import TensorRef


class Leaf(NamedTuple):
  """One array to make; `sharding` may lie on devices of other processes.

  `place`: how the tensor lies in it, None: as it is. Tensors of one stack have one leaf.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  sharding: Any
  place: Place | None = None

  @property
  def is_here(self) -> bool:
    """Whether devices of this process hold some of it."""
    return bool(self.sharding.addressable_devices)


class ArraySink:
  """Collects written bytes per tensor; on the host only unfinished tensors are alive.

  Tensors that have no part on this process' devices are dropped. Those of a stack wait on
  their devices, which for a moment hold it twice.
  """

  def __init__(self, where: Mapping[str, TensorRef], leaves: Mapping[str, Leaf]):
    self._where, self._leaves = where, leaves
    self._host: dict[str, np.ndarray] = {}
    self._missing: dict[str, int] = {}  # bytes
    self._arrays: dict[str, jax.Array] = {}
    self._stacks: dict[tuple[str, ...], Stack] = {}
    for name, leaf in leaves.items():
      if not leaf.is_here or not math.prod(leaf.shape):
        self._put(name, np.empty(where[name].shape, leaf.dtype))

  def write(self, name: str, offset_bytes: int, data: np.ndarray) -> None:
    if name in self._arrays:
      return
    ref, raw = self._where[name], np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if name not in self._host:
      self._host[name] = np.empty(ref.nbytes, np.uint8)
      self._missing[name] = ref.nbytes
    self._host[name][offset_bytes : offset_bytes + raw.size] = raw
    self._missing[name] -= raw.size
    if not self._missing[name]:
      whole = self._host.pop(name).view(self._leaves[name].dtype)
      self._put(name, whole.reshape(ref.shape))

  def finish(self, step: Step, numbers: Any) -> None:
    """Nothing to make durable."""

  def _put(self, name: str, whole: np.ndarray) -> None:
    """Every device takes its part. On CPU it may use this memory: it is not reused."""
    leaf = self._leaves[name]
    turned = whole if leaf.place is None else leaf.place.to_leaf(whole)
    if leaf.place is not None and leaf.place.index and leaf.is_here:
      stack = self._stacks.setdefault(leaf.place.path, Stack(leaf))
      stack.put(name, leaf.place, turned)
      if stack.is_complete:
        self._arrays |= dict.fromkeys(stack.names, stack.array())
        del self._stacks[leaf.place.path]
      return
    array = jax.make_array_from_callback(
      leaf.shape,
      leaf.sharding,
      lambda index: contiguous(turned[index]),
      dtype=leaf.dtype,
    )
    self._arrays[name] = jax.block_until_ready(array)

  def arrays(self) -> dict[str, jax.Array]:
    """All arrays, once every step is done."""
    assert not self._host, sorted(self._host)
    return {name: self._arrays[name] for name in self._leaves}


class Stack:
  """One array of several tensors, layers or experts, each put on the devices it is for."""

  def __init__(self, leaf: Leaf):
    assert leaf.place is not None
    self.names: list[str] = []
    self._leaf, self._axes = leaf, tuple(axis for axis, _ in leaf.place.index)
    self._size = math.prod(leaf.shape[axis] for axis in self._axes)
    self._indices = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    self._parts: dict[Any, dict[tuple[int, ...], jax.Array]] = {
      device: {} for device in self._indices
    }

  @property
  def is_complete(self) -> bool:
    return len(self.names) == self._size

  def put(self, name: str, place: Place, turned: np.ndarray) -> None:
    """A tensor as it lies in the leaf, without the stacked axes."""
    self.names.append(name)
    at = tuple(position for _, position in place.index)
    for device, index in self._indices.items():
      if all(n in self._span(index, axis) for axis, n in place.index):
        cut = tuple(part for axis, part in enumerate(index) if axis not in self._axes)
        part = jax.device_put(contiguous(turned[cut])[None], device)
        self._parts[device][at] = jax.block_until_ready(part)

  def array(self) -> jax.Array:
    """The whole, once it is complete. One program for all devices of this process."""
    axes, shape, devices = self._axes, self._leaf.shape, list(self._indices)
    ordered = [[parts[at] for at in sorted(parts)] for parts in self._parts.values()]
    self._parts.clear()
    mesh = Mesh(np.array(devices), ('device',))
    sharding = NamedSharding(mesh, PartitionSpec('device'))
    parts_MxP = [
      jax.make_array_from_single_device_arrays(
        (len(devices), *parts[0].shape[1:]), sharding, parts
      )
      for parts in zip(*ordered, strict=True)
    ]
    counts = tuple(len(self._span(self._indices[devices[0]], axis)) for axis in axes)
    joined = _stacked(parts_MxP, counts, axes, sharding)
    shards = [shard.data for shard in joined.addressable_shards]
    return jax.block_until_ready(
      jax.make_array_from_single_device_arrays(shape, self._leaf.sharding, shards)
    )

  def _span(self, index: tuple[slice, ...], axis: int) -> range:
    return range(*index[axis].indices(self._leaf.shape[axis]))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _stacked(
  parts_MxP: list[jax.Array],
  counts: tuple[int, ...],
  axes: tuple[int, ...],
  sharding: NamedSharding,
) -> jax.Array:
  """Parts of M devices, `counts` on the stacked `axes`, as their shards in a row."""
  whole = jnp.stack(parts_MxP, 1)
  whole = whole.reshape(whole.shape[0], *counts, *whole.shape[2:])
  whole = jnp.moveaxis(whole, range(1, 1 + len(axes)), [axis + 1 for axis in axes])
  whole = whole.reshape(whole.shape[0] * whole.shape[1], *whole.shape[2:])
  return jax.lax.with_sharding_constraint(whole, sharding)
