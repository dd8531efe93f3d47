"""Host buffers between the files and the devices, reused from step to step.

On CPU `device_put` aliases an aligned buffer instead of copying it, so a buffer may
be refilled only after every program that reads it has finished.
"""

import dataclasses
import queue
from collections.abc import Sequence
from concurrent.futures import CancelledError, Executor

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.host_float import to_float32
from resmerge_jax.pipeline.kernels import common_dtype, staged_dtype
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
class Staged:
  """A step's input: one buffer seen as base LxRxC and experts LxNxRxC."""

  buffer: np.ndarray
  base: np.ndarray
  experts: np.ndarray

  def source(self, i: int) -> np.ndarray:
    """LxRxC of source i (0: base)."""
    return self.experts[:, i - 1] if i else self.base


def staged(staging: Staging, shape: tuple[int, int, int], stack: Stack) -> Staged:
  """Takes a buffer and cuts it for a step of padded `shape`; blocks are aligned."""
  layers, rows, cols = shape
  n_experts = len(stack.sources) - 1
  copied = stack.action == 'base'  # bytes pass through as they are stored
  base_dtype = (DTYPES.__getitem__ if copied else staged_dtype)(stack.dtypes[0])
  kinds = [
    ((layers, rows, cols), base_dtype),
    ((layers, n_experts, rows, cols), staged_dtype(common_dtype(stack.dtypes[1:]))),
  ]
  sizes = [int(np.prod(shape)) * dtype.itemsize for shape, dtype in kinds]
  starts = [0, sizes[0] + -sizes[0] % ALIGNMENT]
  buffer = staging.take(starts[1] + sizes[1])
  base, experts = (
    buffer[start : start + size].view(dtype).reshape(shape)
    for start, size, (shape, dtype) in zip(starts, sizes, kinds, strict=True)
  )
  return Staged(buffer, base, experts)


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
  n_layers, n_rows = len(step.names), step.row_stop - step.row_start
  views = [target.source(i) for i in step.stack.sources]
  jobs = []
  for i, view in enumerate(views):
    view[n_layers:] = 0
    view[:n_layers, n_rows:] = 0
    if not step.present[i]:
      continue
    for layer, name in enumerate(step.names):
      out = view[layer, :n_rows]
      jobs.append(pool.submit(_read, readers[i], group.ref(i, name), step, out))
  for job in jobs:
    job.result()
  for i, view in enumerate(views):
    if not step.present[i]:
      lacks_base = i == 0 or not step.present[0]
      view[:n_layers, :n_rows] = 0 if lacks_base else views[0][:n_layers, :n_rows]


def _read(reader: Reader, ref: TensorRef, step: Step, out_RxC: np.ndarray) -> None:
  """Straight into place; by way of a copy only where the dtype must change."""
  stored = DTYPES[ref.dtype]
  same = stored == out_RxC.dtype
  rows = out_RxC if same else np.empty(out_RxC.shape, stored)
  reader.read_into(ref, step.row_start, step.row_stop, rows.reshape(-1).view(np.uint8))
  if not same:
    out_RxC[...] = to_float32(rows)
