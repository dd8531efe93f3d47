"""Host buffers between the files and the devices, reused from step to step.

On CPU `device_put` aliases an aligned buffer instead of copying it, so a buffer may
be refilled only after every program that reads it has finished.
"""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.pipeline.kernels import staged_dtype
from resmerge_jax.plan.stacks import Step
from resmerge_jax.types import DTYPES

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


def staged_views(
  buffer: np.ndarray, shape: tuple[int, int, int], dtypes: Sequence[str]
) -> list[np.ndarray]:
  """One LxRxC array per source, cut from `buffer` at aligned offsets."""
  views, offset = [], 0
  for code in dtypes:
    nbytes = _padded_bytes(shape, code)
    used = int(np.prod(shape)) * staged_dtype(code).itemsize
    views.append(buffer[offset : offset + used].view(staged_dtype(code)).reshape(shape))
    offset += nbytes
  return views


def staged_bytes(shape: tuple[int, int, int], dtypes: Sequence[str]) -> int:
  return sum(_padded_bytes(shape, code) for code in dtypes)


def _padded_bytes(shape: tuple[int, int, int], code: str) -> int:
  nbytes = int(np.prod(shape)) * staged_dtype(code).itemsize
  return nbytes + -nbytes % ALIGNMENT


def fill(
  step: Step,
  views: Sequence[np.ndarray],
  group: ExpertGroup,
  readers: Sequence[Reader],
  pool: Executor,
) -> None:
  """Reads the rows of `step` into `views`, in parallel; padding becomes zeros.

  Rows that an expert lacks become the base's (no change); rows that the base lacks
  are zeros.
  """
  n_layers, n_rows = len(step.names), step.row_stop - step.row_start
  jobs = []
  for i, view in enumerate(views):
    view[n_layers:].view(np.uint8)[...] = 0
    view[:n_layers, n_rows:].view(np.uint8)[...] = 0
    if not step.present[i]:
      continue
    for layer, name in enumerate(step.names):
      target = view[layer, :n_rows]
      jobs.append(pool.submit(_read, readers[i], group, i, name, step, target))
  for job in jobs:
    job.result()
  for i, view in enumerate(views):
    if not step.present[i]:
      lacks_base = i == 0 or not step.present[0]
      view[:n_layers, :n_rows] = 0 if lacks_base else views[0][:n_layers, :n_rows]


def _read(
  reader: Reader, group: ExpertGroup, i: int, name: str, step: Step, out: np.ndarray
) -> None:
  ref = group.ref(i, name)
  read: Callable[[np.ndarray], None] = lambda x: reader.read_into(  # noqa: E731
    ref, step.row_start, step.row_stop, x.reshape(-1).view(np.uint8)
  )
  if ref.dtype == 'F64':
    wide = np.empty(out.shape, DTYPES['F64'])
    read(wide)
    out[...] = wide
  else:
    read(out)
