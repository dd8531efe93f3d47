"""Two checkpoints tensor by tensor: how far the numbers are apart."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.reader import Reader, block_bytes
from resmerge_jax.types import DTYPES, TensorRef

BLOCK_BYTES = 64 * 2**20  # read at once from each of the two
_PART = 2**18  # entries computed with at once: their float64 copies stay in cache
_EXPONENT_BITS = np.uint32(0x7F80_0000)
_MIN_NORMAL = np.float32(2.0**-126)


@dataclasses.dataclass(frozen=True)
class BlockDifference:
  """Sums and maxima over a block of entries; `a + b` joins two blocks.

  Entries are equal if their values are, or if both are NaN. Where one is NaN the entry
  differs (`n_nan`) but is left out of maxima and sums.
  """

  size: int = 0
  same_bytes: bool = True
  n_differ: int = 0
  n_nan: int = 0
  max_abs: float = 0.0
  max_bf16_units: float = 0.0
  sum_squares_a: float = 0.0
  sum_squares_difference: float = 0.0

  def __add__(self, other: 'BlockDifference') -> 'BlockDifference':
    return BlockDifference(
      self.size + other.size,
      self.same_bytes and other.same_bytes,
      self.n_differ + other.n_differ,
      self.n_nan + other.n_nan,
      max(self.max_abs, other.max_abs),
      max(self.max_bf16_units, other.max_bf16_units),
      self.sum_squares_a + other.sum_squares_a,
      self.sum_squares_difference + other.sum_squares_difference,
    )

  @property
  def share_differ(self) -> float:
    return self.n_differ / self.size if self.size else 0.0

  @property
  def relative(self) -> float:
    """||a - b|| / ||a||, Frobenius norms; infinite where a is zero and b is not."""
    if not self.sum_squares_difference:
      return 0.0
    if not self.sum_squares_a or math.isinf(self.sum_squares_difference):
      return math.inf
    return math.sqrt(self.sum_squares_difference / self.sum_squares_a)


@dataclasses.dataclass(frozen=True)
class TensorDifference:
  """One tensor of A and B. `values` is None where there is nothing to compare."""

  name: str
  a: TensorRef | None
  b: TensorRef | None
  values: BlockDifference | None = None

  @property
  def is_equal(self) -> bool:
    """Whether every value is; bytes may differ (0 and -0, or another dtype)."""
    return self.values is not None and self.values.n_differ == 0


def compare_checkpoints(
  a: Checkpoint, b: Checkpoint, reader_a: Reader, reader_b: Reader
) -> Iterator[TensorDifference]:
  """Differences in A's order, then what only B has; two blocks in memory at a time."""
  for name, ref_a in a.tensors.items():
    ref_b = b.tensors.get(name)
    comparable = ref_b and ref_b.shape == ref_a.shape and is_numeric(ref_a, ref_b)
    if ref_b is None or not comparable:
      yield TensorDifference(name, ref_a, ref_b)
      continue
    total = BlockDifference()
    for start, stop in row_blocks(ref_a, ref_b):
      total += block_difference(
        read_rows(reader_a, ref_a, start, stop), read_rows(reader_b, ref_b, start, stop)
      )
    yield TensorDifference(name, ref_a, ref_b, total)
  for name, ref_b in b.tensors.items():
    if name not in a.tensors:
      yield TensorDifference(name, None, ref_b)


def is_numeric(a: TensorRef, b: TensorRef) -> bool:
  """Whether values of the two can be subtracted: both floats, or one dtype."""
  return a.dtype == b.dtype or (a.is_float and b.is_float)


def row_blocks(a: TensorRef, b: TensorRef) -> Iterator[tuple[int, int]]:
  """Row ranges of at most BLOCK_BYTES (but at least one row) that cover a tensor."""
  row_bytes = max(1, *(block_bytes(ref, 0, min(1, ref.rows))[1] for ref in (a, b)))
  step = max(1, BLOCK_BYTES // row_bytes)
  for start in range(0, a.rows, step):
    yield start, min(start + step, a.rows)


def read_rows(reader: Reader, ref: TensorRef, start: int, stop: int) -> np.ndarray:
  """A vector of the entries of rows [start, stop) of the tensor."""
  begin, end = block_bytes(ref, start, stop)
  out = np.empty(end - begin, np.uint8)
  reader.read_into(ref, start, stop, out)
  return out.view(DTYPES[ref.dtype])


def block_difference(a: np.ndarray, b: np.ndarray) -> BlockDifference:
  """Difference of two vectors of the same length, of float or equal dtypes."""
  parts = range(0, a.size, _PART)
  with np.errstate(over='ignore'):  # the square of a large float64 may be infinite
    return sum(
      (_part_difference(a[i : i + _PART], b[i : i + _PART]) for i in parts),
      start=BlockDifference(),
    )


def _part_difference(a: np.ndarray, b: np.ndarray) -> BlockDifference:
  wide_a = widen(a)
  sum_squares_a = _sum_squares(wide_a[np.isfinite(wide_a)])
  if a.dtype == b.dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8)):
    return BlockDifference(a.size, sum_squares_a=sum_squares_a)
  wide_b = widen(b)
  if a.dtype == b.dtype and a.dtype.kind in 'iu':  # float64 cannot hold all of them
    differ = a != b
  else:
    differ = (wide_a != wide_b) & ~(np.isnan(wide_a) & np.isnan(wide_b))
  wide_a, wide_b = wide_a[differ], wide_b[differ]
  one_nan = np.isnan(wide_a) | np.isnan(wide_b)
  wide_a, wide_b = wide_a[~one_nan], wide_b[~one_nan]
  difference = np.abs(wide_a.astype(np.float64) - wide_b)
  units = difference / bf16_unit(np.maximum(np.abs(wide_a), np.abs(wide_b)))
  return BlockDifference(
    size=a.size,
    same_bytes=False,
    n_differ=int(differ.sum()),
    n_nan=int(one_nan.sum()),
    max_abs=float(difference.max(initial=0)),
    max_bf16_units=float(units.max(initial=0)),
    sum_squares_a=sum_squares_a,
    sum_squares_difference=_sum_squares(difference),
  )


def widen(values: np.ndarray) -> np.ndarray:
  """`values` as float32, which holds bf16 and f16 exactly, or float64 for the rest."""
  if values.dtype == DTYPES['BF16']:
    # By bits: numpy converts ml_dtypes element by element.
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
  if values.dtype in (np.float16, np.float32):
    return values.astype(np.float32, copy=False)
  return values.astype(np.float64)


def bf16_unit(magnitudes: np.ndarray) -> np.ndarray:
  """Spacing of bfloat16 numbers at each of `magnitudes` >= 0, in float64."""
  # Above float32's range the unit stays that of the largest bfloat16.
  largest = np.finfo(np.float32).max
  singles = np.minimum(magnitudes, largest).astype(np.float32)
  powers = (singles.view(np.uint32) & _EXPONENT_BITS).view(np.float32)
  return np.maximum(powers, _MIN_NORMAL).astype(np.float64) * 2.0**-7


def _sum_squares(values: np.ndarray) -> float:
  return float(np.square(values, dtype=np.float64).sum())
