"""What the head solver asks of a matrix: one pass over it, there and back.

d is the matrix divided by its Frobenius norm: scale * delta. S are sampled rows.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.head import THIN
from resmerge_jax.linalg.orthonormal import dot, eigh, gram, transposed
from resmerge_jax.linalg.task_vectors import TaskVectors

# Matrices of more entries (128 MiB) are faster by `InBlocks` on a CPU. It forms so many
# bytes of float32 rows at a time.
MANY_ENTRIES, BLOCK_BYTES = 2**25, 16 * 2**20
# A sample has every 16th row, or every 8th where that would be fewer rows than this or
# not the same of every device, else every 4th.
SAMPLE_ROWS = 192


class Matrix(Protocol):
  """A matrix RxC, as the solver sees it."""

  @property
  def shape(self) -> tuple[int, int]: ...

  def sample(self) -> jax.Array:
    """Some of its rows, SxC."""

  def there_and_back(
    self, x_PxC: jax.Array, scale: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, y = x d^T (PxR) and w = y d (PxC), x turned so that the y_p are orthogonal.

    So a small singular value keeps its digits: its row of w has no part of a large
    one's, whose rounding would cover it.
    """


@dataclasses.dataclass(frozen=True)
class Formed:
  """A float32 matrix in memory; `row_shards`: devices that share its rows evenly."""

  delta_RxC: jax.Array
  row_shards: int = 1

  @property
  def shape(self) -> tuple[int, int]:
    n_rows, n_cols = self.delta_RxC.shape
    return n_rows, n_cols

  def sample(self) -> jax.Array:
    n_rows, n_cols = self.shape
    every = sampled_every(n_rows, self.row_shards)
    if every <= 8:
      return self.delta_RxC[::every]
    # XLA:TPU copies the matrix for strides of 16 and more, for those up to 8 with this.
    return self.delta_RxC.reshape(n_rows // every, every, n_cols)[:, 0]

  def there_and_back(
    self, x_PxC: jax.Array, scale: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    y_RxP = dot('rc,pc->rp', self.delta_RxC, x_PxC) * scale  # so ordered: no copy
    q_PxP = _turn(y_RxP)
    y_PxR = transposed(dot('rp,pq->rq', y_RxP, q_PxP))
    w_PxC = dot('pr,rc->pc', y_PxR, self.delta_RxC) * scale
    return dot('pq,pc->qc', q_PxP, x_PxC), y_PxR, w_PxC


@dataclasses.dataclass(frozen=True)
class InBlocks:
  """D_i of some task vectors, formed block by block of rows from what is stored.

  For matrices that no cache holds: each block serves both products, and the memory is
  read once a pass instead of twice. The y_p are orthogonal on the sample only.
  """

  delta_NxRxC: TaskVectors
  i: jax.Array
  rows_SxC: jax.Array  # the sample

  @classmethod
  def of(cls, delta_NxRxC: TaskVectors, i: jax.Array) -> 'InBlocks':
    some_NxSxC = delta_NxRxC.every(sampled_every(delta_NxRxC.shape[0]))
    return cls(delta_NxRxC, i, some_NxSxC.rows(i, 0, some_NxSxC.shape[0]))

  @property
  def shape(self) -> tuple[int, int]:
    return self.delta_NxRxC.shape

  def sample(self) -> jax.Array:
    return self.rows_SxC

  def there_and_back(
    self, x_PxC: jax.Array, scale: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_PxP = _turn(dot('sc,pc->sp', self.rows_SxC, x_PxC) * scale)
    x_PxC = dot('pq,pc->qc', q_PxP, x_PxC)
    n_rows, n_cols = self.shape
    size = block_rows(n_rows, n_cols)
    n_blocks = math.ceil(n_rows / size)

    def block(b: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
      y_PxR, w_PxC = state
      first = jnp.minimum(b * size, n_rows - size)  # the last block repeats some rows
      delta_BxC = self.delta_NxRxC.rows(self.i, first, size)
      y_PxB = transposed(dot('bc,pc->bp', delta_BxC, x_PxC) * scale)
      y_PxR = jax.lax.dynamic_update_slice_in_dim(y_PxR, y_PxB, first, 1)
      is_new_B = first + jnp.arange(size) >= b * size
      return y_PxR, w_PxC + dot('pb,bc->pc', y_PxB * is_new_B, delta_BxC)

    start = jnp.zeros((len(x_PxC), n_rows)), jnp.zeros(x_PxC.shape)
    y_PxR, w_PxC = jax.lax.fori_loop(0, n_blocks, block, start)
    return x_PxC, y_PxR, w_PxC * scale


def solves_in_blocks(n_rows: int, n_cols: int) -> bool:
  """Whether a CPU that holds all rows takes `InBlocks`; thin matrices must be formed."""
  return n_rows * n_cols > MANY_ENTRIES and min(n_rows, n_cols) > THIN


def sampled_every(n_rows: int, row_shards: int = 1) -> int:
  """Distance of the rows of a sample, which should lie alike on all `row_shards`."""
  for every in 16, 8:
    if n_rows >= every * SAMPLE_ROWS and n_rows % (every * row_shards) == 0:
      return every
  return 4


def block_rows(n_rows: int, n_cols: int) -> int:
  """Rows that `InBlocks` forms at a time, in blocks of one size."""
  return math.ceil(n_rows / math.ceil(4 * n_rows * n_cols / BLOCK_BYTES))


def _turn(y_RxP: jax.Array) -> jax.Array:
  """The rotation, PxP, that makes the columns of y orthogonal."""
  return eigh(gram(transposed(y_RxP)))[0]
