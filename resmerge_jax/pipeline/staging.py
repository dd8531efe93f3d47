"""Host buffers between the files and the devices, reused from step to step.

On CPU `device_put` aliases an aligned buffer instead of copying it, so a buffer may
be refilled only after every program that reads it has finished.
"""

import dataclasses
import itertools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Executor, Future

import jax
import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.lora import read_left, read_right
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.host_float import to_float32
from resmerge_jax.pipeline.kernel_spec import staged_dtype
from resmerge_jax.plan.accelerators import Accelerators, Cpu
from resmerge_jax.plan.stacks import Stack, Step
from resmerge_jax.plan.step_sizes import is_alone
from resmerge_jax.types import DTYPES, TensorRef

ALIGNMENT = 64  # bytes; what XLA's CPU client asks for to use a buffer in place


def aligned(nbytes: int) -> np.ndarray:
  """An uninitialised uint8 vector whose first byte is 64-aligned."""
  raw = np.empty(nbytes + ALIGNMENT, np.uint8)
  skip = -raw.ctypes.data % ALIGNMENT
  return raw[skip : skip + nbytes]


class Staging:
  """A fixed set of buffers; `take` waits until one is given back.

  Buffers grow to the largest step met and are then reused, so their pages are
  faulted in once. Steps that are `alone` (`step_sizes.is_alone`) all take the first.
  """

  def __init__(self, count: int):
    self._buffers = [aligned(0) for _ in range(count)]
    self._free = set(range(count))
    self._closed = False
    self._changed = threading.Condition()

  def take(self, nbytes: int, alone: bool = False) -> np.ndarray:
    wanted = {0} if alone else set(range(len(self._buffers)))
    with self._changed:
      self._changed.wait_for(lambda: self._closed or self._free & wanted)
      if self._closed:
        raise CancelledError
      at = max(self._free & wanted)
      self._free.remove(at)
      if self._buffers[at].size < nbytes:
        self._buffers[at] = aligned(0)  # freed before the larger one is made
        self._buffers[at] = aligned(nbytes)
      return self._buffers[at]

  def give_back(self, buffer: np.ndarray) -> None:
    with self._changed:
      self._free |= {i for i, own in enumerate(self._buffers) if own is buffer}
      self._changed.notify_all()

  def close(self) -> None:
    """Ends the wait of a thread in `take` when the run is given up."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()


@dataclasses.dataclass(frozen=True)
class Shard:
  """What one device takes of a step: base lxrxC and whole experts lxMxrxC.

  `sources` are the base, 0, and the M experts. Factors, of all N experts and with zeros
  up to the largest rank F: left lxNxrxF, right lxNxFxC, float32. `layers` and `rows` are
  its ranges in the padded step. `device` is None where the step is only copied.
  """

  device: jax.Device | None
  layers: range
  rows: range
  sources: tuple[int, ...]
  base: np.ndarray
  experts: np.ndarray
  left: np.ndarray
  right: np.ndarray

  def source(self, i: int) -> np.ndarray:
    """lxrxC of source i (0: base); the base's of an expert without whole tensors."""
    at = self.sources.index(i) if i in self.sources else 0
    return self.experts[:, at - 1] if at else self.base

  def factors(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """lxrxF and lxFxC of source i; of rank 0 for the base."""
    if i == 0:
      n_layers, n_rows, n_cols = self.base.shape
      return np.zeros((n_layers, n_rows, 0)), np.zeros((n_layers, 0, n_cols))
    return self.left[:, i - 1], self.right[:, i - 1]

  def difference(self, layer: int, i: int) -> np.ndarray:
    """D_i of expert i as float32 rxC."""
    left_lxRxF, right_lxFxC = self.factors(i)
    d_RxC = left_lxRxF[layer] @ right_lxFxC[layer]
    if i in self.sources:
      d_RxC += to_float32(self.source(i)[layer]) - to_float32(self.base[layer])
    return d_RxC


@dataclasses.dataclass(frozen=True)
class Staged:
  """The part of a step's input that this process holds: one buffer, cut in shards."""

  buffer: np.ndarray
  shards: tuple[Shard, ...]


Places = Sequence[tuple[jax.Device | None, range, range]]  # device, layers, rows


def places(sharding: jax.sharding.Sharding, shape: tuple[int, int, int]) -> Places:
  """(device, layers, rows) for each device of this process, of an array LxRxC."""
  found = sharding.addressable_devices_indices_map(shape)
  return [
    (device, range(shape[0])[index[0]], range(shape[1])[index[1]])
    for device, index in found.items()
    if index is not None
  ]


def staged(
  staging: Staging,
  where: Places,
  stack: Stack,
  devices: Accelerators | Cpu,
) -> Staged:
  """Takes a buffer and cuts it for the shards at `where`; blocks are aligned."""
  n, f, n_whole = stack.n_experts, stack.rank, len(stack.sources) - 1
  copied = stack.action == 'base'  # bytes pass through as they are stored
  base_dtype = (DTYPES.__getitem__ if copied else staged_dtype)(stack.dtypes[0])
  expert_dtype, float32 = staged_dtype(stack.expert_dtype), DTYPES['F32']
  kinds = [
    kind
    for _, layers, rows in where
    for kind in (
      ((len(layers), len(rows), stack.n_cols), base_dtype),
      ((len(layers), n_whole, len(rows), stack.n_cols), expert_dtype),
      ((len(layers), n, len(rows), f), float32),
      ((len(layers), n, f, stack.n_cols), float32),
    )
  ]
  sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
  starts = [0, *itertools.accumulate(size + -size % ALIGNMENT for size in sizes)]
  buffer = staging.take(starts[-1], is_alone(stack, starts[-1], devices))
  blocks = [
    buffer[start : start + size].view(dtype).reshape(shape)
    for start, size, (shape, dtype) in zip(starts, sizes, kinds, strict=False)
  ]
  shards = tuple(
    Shard(*place, stack.sources, *blocks[4 * i : 4 * i + 4])
    for i, place in enumerate(where)
  )
  return Staged(buffer, shards)


def expect(
  step: Step,
  where: Places,
  devices: Accelerators | Cpu,
  group: ExpertGroup,
  readers: Sequence[Reader],
) -> None:
  """Has the system read what `fill` will want of a step that is alone, from storage.

  Its buffer is not free before the step before it is computed.
  """
  n_rows = sum(len(layers) * len(rows) for _, layers, rows in where)
  if not is_alone(step.stack, n_rows * step.stack.row_bytes, devices):
    return
  for _, *ranges in where:
    layers, rows = _inside(step, *ranges)
    for i in step.stack.sources:
      for layer in layers if step.present[i] and rows else ():
        ref, first = group.place(i, step.names[layer])
        at_row = first + step.row_start
        readers[i].expect(ref, at_row + rows.start, at_row + rows.stop)


def fill(
  step: Step,
  target: Staged,
  group: ExpertGroup,
  readers: Sequence[Reader],
  pool: Executor,
) -> None:
  """Reads the rows of `step` into `target`, in parallel; padding becomes zeros.

  Rows that an expert lacks become the base's (no change); rows that the base lacks
  are zeros.
  """
  jobs = []
  for shard in target.shards:
    layers, rows = _inside(step, shard.layers, shard.rows)
    jobs += _fill_factors(step, shard, group, readers, pool)
    for i in step.stack.sources:
      view = shard.source(i)
      view[len(layers) :] = 0
      view[: len(layers), len(rows) :] = 0
      if not step.present[i]:
        continue
      for at, layer in enumerate(layers):
        (ref, first), out = group.place(i, step.names[layer]), view[at, : len(rows)]
        at_row = first + step.row_start
        jobs.append(pool.submit(_read, readers[i], ref, at_row, rows, out))
  for job in jobs:
    job.result()
  for shard in target.shards:
    layers, rows = _inside(step, shard.layers, shard.rows)
    for i in step.stack.sources:
      if not step.present[i]:
        lacks_base = i == 0 or not step.present[0]
        inside = (slice(len(layers)), slice(len(rows)))
        shard.source(i)[inside] = 0 if lacks_base else shard.base[inside]


def _fill_factors(
  step: Step,
  shard: Shard,
  group: ExpertGroup,
  readers: Sequence[Reader],
  pool: Executor,
) -> list[Future]:
  """Zeros, and reading into them what there is."""
  layers, rows = _inside(step, shard.layers, shard.rows)
  shard.left[...] = 0
  shard.right[...] = 0
  jobs = []
  for i in range(1, shard.left.shape[1] + 1):
    for at, layer in enumerate(layers):
      lora = group.lora(i, step.names[layer])
      if lora is None or not step.present[i] or not rows:
        continue
      start, stop = step.row_start + rows.start, step.row_start + rows.stop
      left = shard.left[at, i - 1, : len(rows), : lora.rank]
      right = shard.right[at, i - 1, : lora.rank]
      jobs.append(pool.submit(read_left, readers[i], lora, start, stop, left))
      jobs.append(pool.submit(read_right, readers[i], lora, right))
  return jobs


def _inside(step: Step, layers: range, rows: range) -> tuple[range, range]:
  """Those of a shard's layers and rows that are none of the padding."""
  n_rows = step.row_stop - step.row_start
  return (
    range(layers.start, min(layers.stop, len(step.names))),
    range(rows.start, min(rows.stop, n_rows)),
  )


def _read(
  reader: Reader, ref: TensorRef, row_start: int, rows: range, out_RxC: np.ndarray
) -> None:
  """Straight into place; by way of a copy only where the dtype must change."""
  if not rows:
    return
  stored = DTYPES[ref.dtype]
  same = stored == out_RxC.dtype
  read = out_RxC if same else np.empty(out_RxC.shape, stored)
  reader.read_into(
    ref,
    row_start + rows.start,
    row_start + rows.stop,
    read.reshape(-1).view(np.uint8),
  )
  if not same:
    out_RxC[...] = to_float32(read)
