"""Blocks of rows of an Orbax checkpoint, whatever its tree, read through TensorStore."""

import pathlib
import threading
from typing import Any, Self

import numpy as np

from resmerge_jax.checkpoint.file_states import BRING_BACK
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.orbax_tree import array_spec
from resmerge_jax.checkpoint.reader import block_bytes
from resmerge_jax.errors import StoppedError
from resmerge_jax.types import TensorRef, find

CACHE_BYTES = 64 * 2**20  # of decoded chunks, of which the next block needs the rest


class OrbaxReader:
  """Reads rows as `CheckpointReader` does; any number of threads may call `read_into`.

  Chunks are read whole: a checkpoint that stores large leaves as one chunk each needs
  that much memory more.
  """

  def __init__(self, checkpoint: Checkpoint):
    assert isinstance(checkpoint.path, pathlib.Path), checkpoint.id
    assert checkpoint.tree is not None, checkpoint.id
    self._checkpoint, self._tree = checkpoint, checkpoint.tree
    self._folder = checkpoint.path
    self._lock = threading.Lock()
    self._arrays: dict[tuple[str, ...], Any] = {}
    self._context: Any = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    with self._lock:
      self._arrays.clear()
      self._context = None

  def expect(self, ref: TensorRef, row_start: int, row_stop: int) -> None:
    """Nothing keeps them."""

  def read_into(
    self, ref: TensorRef, row_start: int, row_stop: int, out: np.ndarray
  ) -> None:
    """Fills `out`, a contiguous uint8 vector, with rows [row_start, row_stop) of `ref`.

    Raises:
      StoppedError: the checkpoint cannot be read.
    """
    begin, end = block_bytes(ref, row_start, row_stop)
    assert out.dtype == np.uint8, out.dtype
    assert out.shape == (end - begin,), (out.shape, begin, end)
    if begin == end:
      return
    whole, part = find(self._checkpoint.tensors, ref.name)
    if part is not None:
      first_row = whole.first_row(part)
      self.read_into(whole, first_row + row_start, first_row + row_stop, out)
      return
    place = self._tree.places[ref.name]
    try:
      leaf = self._array(place.path)[place.part]
      stored = leaf.transpose(np.argsort(np.argsort(place.axes)).tolist())
      first, rows = 0, ref.rows
      if len(ref.shape) > 1:  # its first dimension is rows, or groups of rows
        each = ref.rows // place.split[0]
        first, rows = row_start // each, -(-row_stop // each)
        stored, first = stored[first:rows], first * each
      found = stored.read().result()
    except ValueError as error:
      raise StoppedError(
        f'checkpoint {self._checkpoint.id!r}, {self._folder / ref.file} cannot be read: '
        f'{str(error).splitlines()[0]} (tensor {ref.name})',
        fix=BRING_BACK,
      ) from error
    # As integers, because numpy copies ml_dtypes arrays element by element.
    matrix = (
      np.ascontiguousarray(found).view(f'u{found.itemsize}').reshape(-1, ref.cols)
    )
    wanted = matrix[row_start - first : row_stop - first]
    out.view(wanted.dtype).reshape(wanted.shape)[...] = wanted

  def _array(self, path: tuple[str, ...]) -> Any:
    import tensorstore

    with self._lock:
      if self._context is None:
        self._context = tensorstore.Context(
          {'cache_pool': {'total_bytes_limit': CACHE_BYTES}}
        )
      if path not in self._arrays:
        spec = array_spec(self._folder, self._tree, path)
        opened = tensorstore.open(spec, read=True, context=self._context)
        self._arrays[path] = opened.result()
      return self._arrays[path]
