"""Float conversions on the host. numpy handles ml_dtypes element by element: for
bfloat16 the bits are moved instead."""

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


def from_float32(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """float32 rounded once, to nearest even, to a floating `dtype`."""
  return array.astype(dtype)
