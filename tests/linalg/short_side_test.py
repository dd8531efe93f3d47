"""Blocks of long rows give what whole float64 matrices give."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.linalg.short_side import (
  BLOCK,
  PANELLED,
  Blocks,
  gram,
  mirrored,
  summed,
)
from resmerge_jax.linalg.task_vectors import TaskVectors

N, LONG, SHORT = 2, 2 * BLOCK + 300, 5  # three blocks, the last over parts of two
SHAPES = [(LONG, SHORT), (SHORT, LONG), (7, 7)]


def weights(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Base and experts in bfloat16, and a float32 matrix."""
  rng = np.random.default_rng(shape)
  base_RxC, *experts_NxRxC = rng.standard_normal((1 + N, *shape))
  more_RxC = rng.standard_normal(shape).astype(np.float32)
  bf16 = ml_dtypes.bfloat16
  return base_RxC.astype(bf16), np.array(experts_NxRxC).astype(bf16), more_RxC


def turned(x_NxRxC: np.ndarray) -> np.ndarray:
  return x_NxRxC if x_NxRxC.shape[1] >= x_NxRxC.shape[2] else x_NxRxC.swapaxes(1, 2)


@pytest.mark.parametrize('shape', SHAPES)
def test_sums_maps_and_triangles_see_each_row_once(shape: tuple[int, int]):
  base, experts, more = weights(shape)
  x_MxLxS = np.concatenate([experts.astype(np.float64) - base, more[None]])
  k_SxS = np.random.default_rng(1).standard_normal((min(shape),) * 2)

  def everything(base: jax.Array, experts: jax.Array, more: jax.Array) -> tuple:
    blocks = Blocks(TaskVectors(base, experts), (more,))
    return (
      blocks.sum(blocks.grams),
      blocks.triangle(summed),
      blocks.map(lambda x_MxBxS: summed(x_MxBxS) @ k_SxS, jnp.inf),
    )

  with jax.enable_x64(True):
    bits = base.view(np.uint16), experts.view(np.uint16)
    results = jax.jit(everything)(*bits, more)
    gram_MxSxS, triangle, mapped = jax.tree.map(np.asarray, results)
  want = turned(x_MxLxS)
  np.testing.assert_allclose(gram_MxSxS, want.swapaxes(1, 2) @ want, atol=1e-11)
  sigma, gram_of_sum = (
    f(want.sum(0))
    for f in (lambda x: np.linalg.svd(x, compute_uv=False), lambda x: x.T @ x)
  )
  np.testing.assert_allclose(np.linalg.svd(triangle, compute_uv=False), sigma)
  np.testing.assert_allclose(triangle.T @ triangle, gram_of_sum, atol=1e-9)
  np.testing.assert_allclose(
    turned(mapped[None])[0], want.sum(0) @ k_SxS, rtol=1e-6, atol=1e-5
  )
  assert mapped.dtype == np.float32
  assert triangle.shape == ((SHORT, SHORT) if LONG in shape else shape)


def test_differences_are_exact():
  base = np.float32([[1.0]])
  expert = np.float32([[[2.0**-40]]])  # float32 would round the difference to -1
  with jax.enable_x64(True):
    blocks = Blocks(TaskVectors(jnp.asarray(base), jnp.asarray(expert)))
    assert float(blocks.sum(blocks.grams)[0, 0, 0]) == (1 - 2.0**-40) ** 2


def test_panels_give_the_lower_triangle():
  x_BxM = np.random.default_rng(0).standard_normal((20, PANELLED + 3))
  with jax.enable_x64(True):
    got = np.asarray(jax.jit(lambda x: mirrored(gram(x)[None]))(x_BxM))
  np.testing.assert_allclose(got[0], x_BxM.T @ x_BxM, atol=1e-12)


def test_no_float64_copy_of_the_matrix_exists():
  shape = (64 * BLOCK, 2)
  arrays = jnp.zeros(shape, jnp.float32), jnp.zeros((N, *shape), jnp.float32)

  def update(base: jax.Array, experts: jax.Array) -> jax.Array:
    blocks = Blocks(TaskVectors(base, experts))
    k_SxS = blocks.sum(lambda x_NxBxS: blocks.grams(x_NxBxS).sum(0))
    return blocks.map(lambda x_NxBxS: summed(x_NxBxS) @ k_SxS, jnp.inf)

  with jax.enable_x64(True):
    program = jax.jit(update).lower(*arrays).compile()
  temporary = program.memory_analysis().temp_size_in_bytes
  whole = 8 * shape[0] * shape[1]  # one matrix in float64
  assert temporary < whole / 4
