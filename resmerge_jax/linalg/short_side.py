"""Matrices by blocks of long rows, in float64: all that a whole spectrum needs.

X_i is D_i, or D_i^T where rows are fewer than columns, so that S columns are the short
side. Spectral methods need a few S x S matrices, Gram matrices summed over blocks of
long rows, and form their update sum_i X_i K_i block by block. No float64 copy of a
whole matrix ever exists. Callers trace under `jax.enable_x64`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass
from resmerge_jax.linalg.task_vectors import TaskVectors, widen

BLOCK = 1024  # long rows in float64 at a time, or S of them if that is more
RANK = 1e-10  # sigma / sigma_1 that is nothing, in float64 of exact differences
PANELS, PANELLED = 4, 256  # of a Gram matrix; columns from which it has panels

MAX_GROWTH = 64  # 2^-24 times it is 4e-6, a tenth of the golden data's tolerance


LongRows = Callable[[jax.Array], jax.Array]  # NxBxS -> BxM, row by row


def block_size(n_rows: int, n_cols: int) -> int:
  """Entries of a block of long rows of a matrix."""
  short, long = sorted((n_rows, n_cols))
  return min(long, max(short, BLOCK)) * short


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The X_i of a matrix, and of `more` matrices RxC after them, by blocks of rows."""

  delta_NxRxC: TaskVectors
  more: tuple[jax.Array, ...] = ()

  @property
  def wide(self) -> bool:
    """True where X_i is D_i^T."""
    return self.delta_NxRxC.shape[0] < self.delta_NxRxC.shape[1]

  @property
  def long(self) -> int:
    return max(self.delta_NxRxC.shape)

  @property
  def short(self) -> int:
    return min(self.delta_NxRxC.shape)

  def sum(self, terms: Callable[[jax.Array], Any]) -> Any:
    """sum_b terms(x_NxBxS), a tree of float64 arrays."""
    shapes = jax.eval_shape(lambda: terms(self._block(0)))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(b: int, total: Any) -> Any:
      return jax.tree.map(jnp.add, total, terms(self._block(b)))

    return jax.lax.fori_loop(0, self._count, add, zeros)

  def triangle(self, rows: LongRows) -> jax.Array:
    """A matrix with the singular values and right vectors of the LxM one `rows` makes.

    MxM, or the whole matrix if it is one block.
    """
    if self._count == 1:
      return rows(self._block(0))
    m = jax.eval_shape(lambda: rows(self._block(0))).shape[1]

    def reduce(b: int, r_MxM: jax.Array) -> jax.Array:
      return jnp.linalg.qr(jnp.vstack([r_MxM, rows(self._block(b))]), mode='r')

    return jax.lax.fori_loop(0, self._count, reduce, jnp.zeros((m, m), jnp.float64))

  def map(self, rows: LongRows, growth: jax.Array | float) -> jax.Array:
    """The float32 matrix RxC whose long rows are rows(x_NxBxS), BxS.

    `growth`: how much an error of X may grow relative to X. float32 products, three
    times as fast, are taken where it stays small; `rows` gets x in either type.
    """

    def in_type(dtype: Any) -> jax.Array:
      def write(b: int, out_RxC: jax.Array) -> jax.Array:
        start = self._start(b)
        y_BxS = rows(self._read(start, dtype)).astype(jnp.float32)
        update, axis = (y_BxS.T, 1) if self.wide else (y_BxS, 0)
        return jax.lax.dynamic_update_slice_in_dim(out_RxC, update, start, axis)

      zeros_RxC = jnp.zeros(self.delta_NxRxC.shape, jnp.float32)
      return jax.lax.fori_loop(0, self._count, write, zeros_RxC)

    return jax.lax.cond(
      growth < MAX_GROWTH, lambda: in_type(jnp.float32), lambda: in_type(jnp.float64)
    )

  def grams(self, x_NxBxS: jax.Array) -> jax.Array:
    """`gram` of each X_i, NxSxS."""
    return jnp.stack([self.gram(x_BxS) for x_BxS in x_NxBxS])

  def gram(self, x_BxS: jax.Array) -> jax.Array:
    """`gram` of a sum of the X_i, which are at hand as columns where `wide`."""
    return gram(x_BxS, by_columns=self.wide)

  def times(self, x_BxS: jax.Array, k_SxM: jax.Array) -> jax.Array:
    """A sum of the X_i times K, so that no block is turned."""
    k_SxM = k_SxM.astype(x_BxS.dtype)
    return (k_SxM.T @ x_BxS.T).T if self.wide else x_BxS @ k_SxM

  @property
  def missing(self) -> float:
    """sigma / sigma_1 up to which a direction counts as missing."""
    return max(RANK, self.delta_NxRxC.noise)

  @property
  def _rows(self) -> int:
    return block_size(*self.delta_NxRxC.shape) // self.short

  @property
  def _count(self) -> int:
    return -(-self.long // self._rows)

  def _start(self, b: int) -> jax.Array:
    """The last block ends with the matrix and begins inside the block before."""
    return jnp.int32(jnp.minimum(b * self._rows, self.long - self._rows))

  def _block(self, b: int) -> jax.Array:
    """Block b, NxBxS, with zeros for the rows that the block before had."""
    start = self._start(b)
    fresh_B = start + jnp.arange(self._rows) >= b * self._rows
    return jnp.where(fresh_B[:, None], self._read(start, jnp.float64), 0.0)

  def _read(self, start: jax.Array, dtype: Any) -> jax.Array:
    """Rows of X from `start`, NxBxS; exact in float64, which holds every difference."""

    def part(stored: jax.Array) -> jax.Array:
      axis = stored.ndim - 1 if self.wide else stored.ndim - 2
      cut = jax.lax.dynamic_slice_in_dim(stored, start, self._rows, axis)
      return widen(cut).astype(dtype)

    x_NxRxC = part(self.delta_NxRxC.experts_NxRxC)
    if not self.delta_NxRxC.are_differences:
      x_NxRxC -= part(self.delta_NxRxC.base_RxC)
    if self.more:
      x_NxRxC = jnp.concatenate([x_NxRxC, jnp.stack([part(y) for y in self.more])])
    return x_NxRxC.swapaxes(1, 2) if self.wide else x_NxRxC


def gram(x_BxM: jax.Array, by_columns: bool = False) -> jax.Array:
  """X^T X of a block, MxM. Only the lower triangle counts (see `mirrored`).

  Panel by panel of its rows: five eighths of the whole product. `by_columns`: X^T is
  the array at hand.
  """
  m = x_BxM.shape[1]
  if m < PANELLED:
    return x_BxM.T @ x_BxM
  edges = [m * p // PANELS for p in range(PANELS + 1)]
  # Hidden from XLA, which would make the block again for every product.
  if by_columns:
    (xt_MxB,) = another_pass(x_BxM.T)
    products = [xt_MxB[a:b] @ xt_MxB[:b].T for a, b in itertools.pairwise(edges)]
  else:
    x_BxM, xt_MxB = another_pass(x_BxM, x_BxM.T)
    products = [xt_MxB[a:b] @ x_BxM[:, :b] for a, b in itertools.pairwise(edges)]
  return jnp.vstack([jnp.pad(p, ((0, 0), (0, m - p.shape[1]))) for p in products])


def mirrored(lower_xMxM: jax.Array) -> jax.Array:
  """Symmetric matrices from their lower triangles."""
  return jnp.tril(lower_xMxM) + jnp.tril(lower_xMxM, -1).swapaxes(-1, -2)


def summed(x_NxBxS: Sequence[jax.Array] | jax.Array) -> jax.Array:
  """Sum over N blocks. Term by term: XLA:CPU is slow to reduce a short leading axis."""
  return sum(x_NxBxS[1:], start=x_NxBxS[0])
