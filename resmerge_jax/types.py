"""Small frozen types shared by every package, and the glossary of shape letters.

Arrays carry their shape as a name suffix, and einsum strings use the same letters
in lower case:

  L  layers in a stack          N  experts            R  rows (output features)
  C  columns (input features)   K  head rank          P  block of the Krylov solver
  M  Krylov basis vectors       T  rank-one terms of a low-rank update (N * K)
  S  short side of a matrix     B  block of rows along the long side (linalg/short_side)

Weights keep Hugging Face's orientation: a row is one output feature, so a block of
rows is one contiguous range of bytes.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import ml_dtypes
import numpy as np

Family = Literal['router', 'attention', 'ffn', 'norm', 'embed_lm_head', 'other']

# safetensors code -> numpy dtype. ml_dtypes supplies what numpy lacks.
DTYPES: dict[str, np.dtype] = {
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F16': np.dtype(np.float16),
  'F32': np.dtype(np.float32),
  'F64': np.dtype(np.float64),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8),
  'U64': np.dtype(np.uint64),
  'U32': np.dtype(np.uint32),
  'U16': np.dtype(np.uint16),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(np.bool_),
}
CODES: dict[np.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}
FLOAT_CODES = frozenset({'BF16', 'F16', 'F32', 'F64'})  # what can be merged
QUANTISED_CODES = frozenset({'F8_E4M3', 'F8_E5M2'})  # meaningless without their scales


@dataclasses.dataclass(frozen=True, slots=True)
class TensorRef:
  """Where one tensor lies: `start` is the absolute byte offset in `file`.

  `file` is the shard's name inside its folder ('' for a tensor held in memory).
  """

  name: str
  dtype: str
  shape: tuple[int, ...]
  file: str = ''
  start: int = 0

  @property
  def is_float(self) -> bool:
    return self.dtype in FLOAT_CODES

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes of the stored tensor."""
    return self.size * DTYPES[self.dtype].itemsize

  @property
  def rows(self) -> int:
    """Rows of the matrix view: 0-D and 1-D tensors are one row, N-D fold to (-1, C)."""
    return math.prod(self.shape[:-1])

  @property
  def cols(self) -> int:
    """Columns of the matrix view (the last dimension, 1 for a scalar)."""
    return self.shape[-1] if self.shape else 1

  @property
  def part_names(self) -> tuple[str, ...]:
    """Names of the entries of the first axis: 'experts.down_proj[0]' and so on."""
    return tuple(f'{self.name}[{i}]' for i in range(self.shape[0]))

  def part(self, i: int) -> 'TensorRef':
    """Entry i of the first axis as a tensor of its own, where it lies."""
    start = self.start + i * (self.nbytes // self.shape[0])
    return dataclasses.replace(
      self, name=f'{self.name}[{i}]', shape=self.shape[1:], start=start
    )

  def first_row(self, part: int | None) -> int:
    """The row at which a part begins, 0 for None."""
    return part * (self.rows // self.shape[0]) if part else 0


def find(tensors: Mapping[str, TensorRef], name: str) -> tuple[TensorRef, int | None]:
  """The tensor `name` and None, or the tensor that has `name` as a part, and its number."""
  if name in tensors:
    return tensors[name], None
  whole, _, number = name.removesuffix(']').rpartition('[')
  return tensors[whole], int(number)
