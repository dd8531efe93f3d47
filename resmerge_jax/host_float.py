"""Widening on the host: numpy handles ml_dtypes element by element, so for bfloat16
the bits are moved instead."""

import numpy as np

from resmerge_jax.types import DTYPES

BF16 = DTYPES['BF16']


def to_float32(array: np.ndarray) -> np.ndarray:
  """`array` as float32; exact for float16, bfloat16 and float32."""
  if array.dtype == BF16:
    wide = array.view(np.uint16).astype(np.uint32)
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)
  return array.astype(np.float32)


def contiguous(array: np.ndarray) -> np.ndarray:
  """The same numbers one after the other. As integers, for numpy's sake."""
  bits = np.ascontiguousarray(array.view(f'u{array.itemsize}'))
  return bits.view(array.dtype)
