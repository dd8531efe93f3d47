"""In-memory state dicts behind the same interface as folders."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.reader import block_bytes
from resmerge_jax.errors import InputError
from resmerge_jax.types import CODES, TensorRef


def memory_checkpoint(
  tensors: Mapping[str, Any], id: str, config: Mapping[str, Any] | None = None
) -> Checkpoint:
  """The checkpoint that a mapping of names to numpy-like arrays stands for.

  Raises:
    InputError: values that are not arrays of a known dtype, all of them.
  """
  refs, problems = {}, []
  for name, array in tensors.items():
    code = _code(array)
    if code:
      refs[name] = TensorRef(name, code, tuple(array.shape))
    else:
      dtype = getattr(array, 'dtype', None)
      kind = f'{type(array).__module__}.{type(array).__name__}'
      problems.append(f'{name}: {kind}' + (f' of dtype {dtype}' if dtype else ''))
  if problems:
    raise InputError(
      f'{id!r}: values that are not arrays of a known dtype',
      problems,
      fix='give numpy arrays (ml_dtypes for bfloat16) or jax arrays',
    )
  return Checkpoint(id=id, path=None, config=dict(config or {}), tensors=refs)


def _code(array: Any) -> str | None:
  if not hasattr(array, 'shape'):
    return None
  try:
    return CODES.get(np.dtype(array.dtype))
  except (AttributeError, TypeError):  # not an array; a dtype of another library
    return None


class MemoryReader:
  """Reads rows of in-memory arrays as `CheckpointReader` does those of files."""

  def __init__(self, tensors: Mapping[str, Any], id: str):
    self.id = id
    self._tensors = tensors

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    pass

  def expect(self, ref: TensorRef, row_start: int, row_stop: int) -> None:
    """It is here."""

  def read_into(
    self, ref: TensorRef, row_start: int, row_stop: int, out: np.ndarray
  ) -> None:
    """Fills `out`, a contiguous uint8 vector, with rows [row_start, row_stop) of `ref`."""
    begin, end = block_bytes(ref, row_start, row_stop)
    assert out.dtype == np.uint8, out.dtype
    assert out.shape == (end - begin,), (out.shape, begin, end)
    if begin == end:
      return
    # As integers, because numpy copies ml_dtypes arrays element by element.
    array = np.asarray(self._tensors[ref.name])
    array = array.view(f'u{array.itemsize}')
    matrix = array.reshape(ref.rows, ref.cols)
    out.view(array.dtype).reshape(-1, ref.cols)[...] = matrix[row_start:row_stop]
