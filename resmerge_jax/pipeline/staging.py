"""Host buffers between the files and the devices, reused from step to step.

On CPU `device_put` aliases an aligned buffer instead of copying it, so a buffer may
be refilled only after every program that reads it has finished.
"""

import dataclasses
import itertools
import math
import queue
from collections.abc import Sequence
from concurrent.futures import CancelledError, Executor

import jax
import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.host_float import to_float32
from resmerge_jax.pipeline.kernel_spec import common_dtype, staged_dtype
from resmerge_jax.plan.stacks import Stack, Step
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
  faulted in once.
  """

  def __init__(self, count: int):
    self._count = count
    self._closed = False
    self._free: queue.Queue[np.ndarray] = queue.Queue()
    for _ in range(count):
      self._free.put(aligned(0))

  def take(self, nbytes: int) -> np.ndarray:
    buffer = self._free.get()
    if self._closed:
      raise CancelledError
    return buffer if buffer.size >= nbytes else aligned(nbytes)

  def give_back(self, buffer: np.ndarray) -> None:
    self._free.put(buffer)

  def close(self) -> None:
    """Ends the wait of a thread in `take` when the run is given up."""
    self._closed = True
    for _ in range(self._count):
      self._free.put(aligned(0))


@dataclasses.dataclass(frozen=True)
class Shard:
  """What one device takes of a step: base lxrxC and experts lxNxrxC.

  `layers` and `rows` are its ranges in the padded step. `device` is None where the
  step is only copied.
  """

  device: jax.Device | None
  layers: range
  rows: range
  base: np.ndarray
  experts: np.ndarray

  def source(self, i: int) -> np.ndarray:
    """lxrxC of source i (0: base)."""
    return self.experts[:, i - 1] if i else self.base


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
) -> Staged:
  """Takes a buffer and cuts it for the shards at `where`; blocks are aligned."""
  n_experts = len(stack.sources) - 1
  copied = stack.action == 'base'  # bytes pass through as they are stored
  base_dtype = (DTYPES.__getitem__ if copied else staged_dtype)(stack.dtypes[0])
  expert_dtype = staged_dtype(common_dtype(stack.dtypes[1:]))
  kinds = [
    kind
    for _, layers, rows in where
    for kind in (
      ((len(layers), len(rows), stack.n_cols), base_dtype),
      ((len(layers), n_experts, len(rows), stack.n_cols), expert_dtype),
    )
  ]
  sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
  starts = [0, *itertools.accumulate(size + -size % ALIGNMENT for size in sizes)]
  buffer = staging.take(starts[-1])
  blocks = [
    buffer[start : start + size].view(dtype).reshape(shape)
    for start, size, (shape, dtype) in zip(starts, sizes, kinds, strict=False)
  ]
  shards = tuple(
    Shard(*place, base, experts)
    for place, base, experts in zip(where, blocks[::2], blocks[1::2], strict=True)
  )
  return Staged(buffer, shards)


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
    layers, rows = _inside(step, shard)
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
    layers, rows = _inside(step, shard)
    for i in step.stack.sources:
      if not step.present[i]:
        lacks_base = i == 0 or not step.present[0]
        inside = (slice(len(layers)), slice(len(rows)))
        shard.source(i)[inside] = 0 if lacks_base else shard.base[inside]


def _inside(step: Step, shard: Shard) -> tuple[range, range]:
  """The shard's layers and rows that are none of the padding."""
  n_rows = step.row_stop - step.row_start
  return (
    range(shard.layers.start, min(shard.layers.stop, len(step.names))),
    range(shard.rows.start, min(shard.rows.stop, n_rows)),
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
