"""Inner products of experts, residuals and heads against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.linalg import gram as gram_lib
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.krylov import top_k
from resmerge_jax.pipeline.kernels import CPU_OPTIONS
from tests.linalg import heads

compiled = functools.partial(jax.jit, compiler_options=CPU_OPTIONS)


def deltas(n: int, rows: int, cols: int, common: float = 1.0) -> np.ndarray:
  rng = np.random.default_rng([n, rows, cols])
  shared_RxC = common * rng.standard_normal((rows, cols))
  noise_NxRxC = rng.standard_normal((n, rows, cols))
  return (1e-4 * (shared_RxC + noise_NxRxC)).astype(np.float32)


def exact_gram(x_NxRxC: np.ndarray) -> np.ndarray:
  flat = x_NxRxC.reshape(len(x_NxRxC), -1).astype(np.float64)
  return flat @ flat.T


@functools.cache
def solver(k: int):
  def solve(delta_NxRxC: jax.Array, start_PxC: jax.Array) -> Head:
    return jax.vmap(functools.partial(top_k, k=k, start_PxC=start_PxC))(delta_NxRxC)

  return compiled(solve)


@pytest.mark.parametrize(
  ('n', 'rows', 'cols'), [(1, 7, 5), (3, 40, 30), (5, 1, 9), (2, 9, 1), (2, 3, 20000)]
)
def test_gram_agrees_with_float64(n: int, rows: int, cols: int):
  x_NxRxC = deltas(n, rows, cols)
  got = compiled(gram_lib.gram)(x_NxRxC)
  want = exact_gram(x_NxRxC)
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got, got.T)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * want.max())
  as_list = compiled(gram_lib.gram)(list(x_NxRxC))
  np.testing.assert_allclose(as_list, want, rtol=0, atol=1e-5 * want.max())


def test_sums_of_many_entries_stay_accurate():
  """A naive float32 sum over both axes loses up to 3 % here."""
  x_RxC = np.abs(np.random.default_rng(0).standard_normal((4096, 1024), np.float32))
  got = compiled(gram_lib.sums)([x_RxC, x_RxC * x_RxC])
  want = [x_RxC.sum(dtype=np.float64), np.square(x_RxC.astype(np.float64)).sum()]
  np.testing.assert_allclose(got, want, rtol=2e-5)


def test_row_sums():
  x_RxC = np.arange(12, dtype=np.float32).reshape(3, 4)
  first_R, second_R = gram_lib.row_sums([jnp.asarray(x_RxC), jnp.asarray(-2 * x_RxC)])
  np.testing.assert_array_equal(first_R, x_RxC.sum(1))
  np.testing.assert_array_equal(second_R, -2 * x_RxC.sum(1))


def test_squares_of_sums_do_not_cancel():
  """||X - X'|| of nearly equal matrices: through the Gram it would be noise."""
  x_NxRxC = deltas(2, 50, 40)
  x_NxRxC[1] = x_NxRxC[0] * np.float32(1 + 1e-5)
  coefficients_SxN = np.array([[1, 1], [1, -1], [0, 0]], np.float32)
  got = compiled(gram_lib.squares_of_sums)(x_NxRxC, coefficients_SxN)
  x = x_NxRxC.astype(np.float64)
  want = [np.linalg.norm(x[0] + x[1]), np.linalg.norm(x[0] - x[1]), 0.0]
  np.testing.assert_allclose(np.sqrt(got), want, rtol=1e-5)


@pytest.mark.parametrize(('rows', 'cols', 'k'), [(40, 30, 1), (30, 40, 3), (4, 30, 4)])
def test_residuals_and_heads(rows: int, cols: int, k: int):
  delta_NxRxC = deltas(3, rows, cols)
  head = solver(k)(delta_NxRxC, heads.start(k, cols))
  H = np.stack([heads.lapack(delta_RxC, k)[0] for delta_RxC in delta_NxRxC])
  scale = np.linalg.norm(delta_NxRxC[0])
  residual_NxRxC = np.stack(compiled(gram_lib.residual)(delta_NxRxC, head))
  np.testing.assert_allclose(residual_NxRxC, delta_NxRxC - H, atol=1e-5 * scale)
  got = compiled(gram_lib.head_gram)(head)
  np.testing.assert_allclose(got, exact_gram(H), atol=1e-5 * scale**2)


def test_residual_gram_survives_a_head_with_all_the_energy():
  """<D_i, D_j> - <H_i, H_j> would cancel to noise: the head is 1e4 times larger."""
  rng = np.random.default_rng(0)
  small_NxRxC = rng.standard_normal((2, 60, 50)).astype(np.float32)
  u_NxR, v_NxC = rng.standard_normal((2, 60)), rng.standard_normal((2, 50))
  delta_NxRxC = (1e4 * np.einsum('nr,nc->nrc', u_NxR, v_NxC)).astype(np.float32)
  delta_NxRxC += small_NxRxC
  head = solver(1)(delta_NxRxC, heads.start(1, 50))
  R = np.stack([d - heads.lapack(d, 1)[0] for d in delta_NxRxC.astype(np.float64)])
  got = compiled(lambda d, h: gram_lib.gram(gram_lib.residual(d, h)))(delta_NxRxC, head)
  want = exact_gram(R)
  np.testing.assert_allclose(got, want, atol=0.02 * want.max())


def test_another_pass_changes_nothing():
  x_RxC = jnp.arange(6.0).reshape(2, 3)
  tree = compiled(gram_lib.another_pass)(x_RxC, [x_RxC, None])
  np.testing.assert_array_equal(tree[0], x_RxC)
  np.testing.assert_array_equal(tree[1][0], x_RxC)
  assert tree[1][1] is None
