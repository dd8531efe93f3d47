"""Blocks of rows of one checkpoint, read into buffers that the caller owns.

A row is a row of the tensor's matrix view (`TensorRef.rows`, `TensorRef.cols`).
"""

import contextlib
import threading
from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np

from resmerge_jax.checkpoint.file_states import BRING_BACK, LEAVE_ALONE
from resmerge_jax.checkpoint.files import OpenFile, State, open_file
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.format import header_of
from resmerge_jax.errors import InputError, StoppedError
from resmerge_jax.types import DTYPES, TensorRef


class Reader(Protocol):
  """Source of rows: a folder or an in-memory mapping."""

  def read_into(
    self, ref: TensorRef, row_start: int, row_stop: int, out: np.ndarray
  ) -> None: ...

  def expect(self, ref: TensorRef, row_start: int, row_stop: int) -> None:
    """The same rows will be read soon; `Checkpoint.reads_ahead` tells if that helps."""

  def __enter__(self) -> Self: ...

  def __exit__(self, *exception: object) -> None: ...


def block_bytes(ref: TensorRef, row_start: int, row_stop: int) -> tuple[int, int]:
  """Bytes [begin, end) of these rows, counted from the start of the tensor."""
  assert 0 <= row_start <= row_stop <= ref.rows, (ref, row_start, row_stop)
  row_bytes = ref.cols * DTYPES[ref.dtype].itemsize
  return row_start * row_bytes, row_stop * row_bytes


class CheckpointReader:
  """Reads the shard files of a folder, local or remote; any number of threads may call `read_into`.

  Use as a context manager. A file is opened at its first read and must not change
  between the reading of its header and the end of the run. `states`: what the files
  must still be when they are opened, if that is known.
  """

  def __init__(self, checkpoint: Checkpoint, states: Mapping[str, State] | None = None):
    assert checkpoint.path is not None, checkpoint.id
    self._checkpoint = checkpoint
    self._states = states or {}
    self._folder = checkpoint.path
    self._lock = threading.Lock()
    self._files: dict[str, tuple[OpenFile, State]] = {}  # with its state when opened

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    with self._lock:
      while self._files:
        _, (file, _) = self._files.popitem()
        file.close()

  def read_into(
    self, ref: TensorRef, row_start: int, row_stop: int, out: np.ndarray
  ) -> None:
    """Fills `out`, a contiguous uint8 vector, with rows [row_start, row_stop) of `ref`.

    Raises:
      StoppedError: the file vanished or cannot be read.
      InputError: it became shorter or was changed.
    """
    begin, end = block_bytes(ref, row_start, row_stop)
    assert out.dtype == np.uint8, out.dtype
    assert out.shape == (end - begin,), (out.shape, begin, end)
    try:
      file, state = self._open(ref)
      view, offset = out.data, ref.start + begin
      while view:
        n_read = file.read_into(view, offset)
        if n_read == 0:
          size = file.size()
          raise self._error(ref, f'ends at byte {size}, byte {offset} is wanted')
        view, offset = view[n_read:], offset + n_read
      if file.state() != state:
        raise self._error(ref, 'was changed while it was read')
    except OSError as error:
      text = self._describe(ref, f'cannot be read: {error.strerror}')
      raise StoppedError(text, fix=BRING_BACK) from error

  def expect(self, ref: TensorRef, row_start: int, row_stop: int) -> None:
    """Raises nothing: who reads the rows finds out."""
    begin, end = block_bytes(ref, row_start, row_stop)
    with contextlib.suppress(OSError, InputError):
      self._open(ref)[0].expect(ref.start + begin, end - begin)

  def _open(self, ref: TensorRef) -> tuple[OpenFile, State]:
    with self._lock:
      if ref.file not in self._files:
        file = open_file(self._folder / ref.file)
        try:
          state = file.state()
          self._check_header(ref, file)
          if state != self._states.get(ref.file, state):
            raise self._error(ref, 'was changed after its header had been read')
        except BaseException:
          file.close()
          raise
        self._files[ref.file] = file, state
      return self._files[ref.file]

  def _check_header(self, ref: TensorRef, file: OpenFile) -> None:
    """Raises unless the file is still the one whose header made the checkpoint."""
    tensors = header_of(self._folder / ref.file, file).tensors
    if any(
      tensors.get(name) != known
      for name, known in self._checkpoint.tensors.items()
      if known.file == ref.file
    ):
      raise self._error(ref, 'was replaced after its header had been read')

  def _error(self, ref: TensorRef, what: str) -> InputError:
    return InputError(self._describe(ref, what), fix=LEAVE_ALONE)

  def _describe(self, ref: TensorRef, what: str) -> str:
    return (
      f'checkpoint {self._checkpoint.id!r}, {self._folder / ref.file} {what} '
      f'(tensor {ref.name})'
    )
