"""The update of one tensor as an adapter stores it, and its factors as they are read."""

import dataclasses
from typing import NamedTuple

import numpy as np

from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.host_float import to_float32
from resmerge_jax.types import DTYPES, TensorRef


class Lora(NamedTuple):
  """The update scale * left @ right of one RxC tensor; left is RxF, right FxC.

  `transposed`: left and right are stored as their transposes.
  """

  left: TensorRef
  right: TensorRef
  transposed: bool
  scale: float

  @property
  def rank(self) -> int:
    """F."""
    return self.right.shape[1 if self.transposed else 0]


def read_left(
  reader: Reader, lora: Lora, row_start: int, row_stop: int, out_RxF: np.ndarray
) -> None:
  """Rows [row_start, row_stop) of scale * left as float32, into `out_RxF`."""
  n_rows = lora.left.shape[1 if lora.transposed else 0]
  if not lora.transposed:
    out_RxF[...] = _rows(reader, lora.left, row_start, row_stop)
  elif (row_start, row_stop) == (0, n_rows):
    out_RxF[...] = _rows(reader, lora.left, 0, lora.rank).T
  else:  # row f of what is stored is column f of left: read as one long column
    column = dataclasses.replace(lora.left, shape=(lora.left.size, 1))
    for f in range(lora.rank):
      at = f * n_rows
      out_RxF[:, f] = _rows(reader, column, at + row_start, at + row_stop)[:, 0]
  out_RxF *= np.float32(lora.scale)


def read_right(reader: Reader, lora: Lora, out_FxC: np.ndarray) -> None:
  """All of right as float32, into `out_FxC`."""
  stored = _rows(reader, lora.right, 0, lora.right.rows)
  out_FxC[...] = stored.T if lora.transposed else stored


def _rows(reader: Reader, ref: TensorRef, start: int, stop: int) -> np.ndarray:
  stored = np.empty((stop - start, ref.cols), DTYPES[ref.dtype])
  reader.read_into(ref, start, stop, stored.reshape(-1).view(np.uint8))
  return to_float32(stored)
