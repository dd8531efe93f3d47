"""Merged bytes as sharded arrays: a tensor is put on its devices once it is complete."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from resmerge_jax.host_float import contiguous
from resmerge_jax.plan.stacks import Step
from resmerge_jax.trees.tree import Place
from resmerge_jax.types import TensorRef


class Leaf(NamedTuple):
  """One array to make; `sharding` may lie on devices of other processes.

  `place`: how the tensor lies in it, None: as it is.
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

  Tensors that have no part on this process' devices are dropped.
  """

  def __init__(self, where: Mapping[str, TensorRef], leaves: Mapping[str, Leaf]):
    self._where, self._leaves = where, leaves
    self._host: dict[str, np.ndarray] = {}
    self._missing: dict[str, int] = {}  # bytes
    self._arrays: dict[str, jax.Array] = {}
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
    part = whole.__getitem__
    if leaf.place is not None:
      turned = leaf.place.to_leaf(whole)
      part = lambda index: contiguous(turned[index])  # noqa: E731
    array = jax.make_array_from_callback(
      leaf.shape, leaf.sharding, part, dtype=leaf.dtype
    )
    self._arrays[name] = jax.block_until_ready(array)

  def arrays(self) -> dict[str, jax.Array]:
    """All arrays, once every step is done."""
    assert not self._host, sorted(self._host)
    return {name: self._arrays[name] for name in self._leaves}
