"""Products of factors: heads, inner products and norms against the matrices formed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.linalg.exact import exact_head
from resmerge_jax.linalg.gram import gram, residual, squares_of_sums
from resmerge_jax.linalg.head import Head, block_size, ritz_size
from resmerge_jax.linalg.products import counts, heads, squares
from resmerge_jax.linalg.task_vectors import Products, TaskVectors, formed
from resmerge_jax.methods.base import LowRank, apply_update
from resmerge_jax.pipeline.kernels import random_start

R, C, N, K = 90, 70, 3, 2


def products(rank: int, rows: int = R, cols: int = C, seed: int = 0) -> Products:
  rng = np.random.default_rng([seed, rank])
  left_NxRxF = rng.standard_normal((N, rows, rank)) * np.linspace(1, 0.3, rank)
  right_NxFxC = rng.standard_normal((N, rank, cols))
  base_RxC = np.zeros((rows, cols))
  return Products(*(jnp.float32(x) for x in (base_RxC, left_NxRxF, right_NxFxC)))


def wide(x: Products) -> np.ndarray:
  """NxRxC in float64."""
  return np.float64(x.left_NxRxF) @ np.float64(x.right_NxFxC)


def solved(x: Products, k: int = K) -> Head:
  start_PxC = random_start(0, (block_size(k), x.shape[1]))
  found = [head for (head,) in heads(x, (k,), start_PxC, ritz_size(k, min(x.shape)))]
  return jax.tree.map(lambda *of_experts: jnp.stack(of_experts), *found)


# 1: less than k; 4: less than the solver's block; 66: the solver iterates; 80: more than C.
@pytest.mark.parametrize('rank', [1, 4, 16, 66, 80])
def test_heads_are_those_of_the_matrices(rank):
  x = products(rank)
  head = solved(x)
  assert head.ritz_MxC.shape == (N, block_size(K), C)
  for i, d_RxC in enumerate(wide(x)):
    exact = exact_head(d_RxC, K)
    got_RxC = np.float64(head.y_KxR[i]).T @ np.float64(head.v_KxC[i])
    want_RxC = exact.y_KxR.T @ exact.v_KxC
    # float32: what the solver promises of a head it does not flag
    assert np.linalg.norm(got_RxC - want_RxC) <= 1e-4 * np.linalg.norm(want_RxC)
    np.testing.assert_allclose(
      head.sigma_K[i], exact.sigma_K, rtol=1e-5, atol=1e-5 * exact.sigma_K[0]
    )
  assert np.all(np.asarray(head.error) < 1e-4)
  assert bool(head.certified.all()) or rank > 64


def test_a_wide_matrix_and_one_of_few_rows():
  for shape in ((5, 40), (40, 5), (1, 30)):
    x = products(8, *shape)
    head = solved(x, 1)
    assert head.ritz_MxC.shape[1] == min(block_size(1), *shape)
    want_N = np.linalg.norm(wide(x), 2, axis=(1, 2))
    np.testing.assert_allclose(head.sigma_K[:, 0], want_N, rtol=1e-5)


def test_inner_products_norms_and_updates():
  x, d_NxRxC = products(6), wide(products(6))
  want_NxN = np.einsum('irc,jrc->ij', d_NxRxC, d_NxRxC)
  norm_N = np.sqrt(np.diag(want_NxN))
  scale_NxN = norm_N[:, None] * norm_N
  # float32 sums of numbers of either sign: units of their norms
  assert np.max(np.abs(gram(x) - want_NxN) / scale_NxN) < 1e-6
  np.testing.assert_allclose(squares(x), norm_N**2, rtol=1e-5)
  s_SxN = jnp.float32([[1, 1, 1], [1, -2, 0.5], [0, 0, 0]])
  want_S = np.linalg.norm(np.einsum('sn,nrc->src', s_SxN, d_NxRxC), axis=(1, 2))
  np.testing.assert_allclose(np.sqrt(squares_of_sums(x, s_SxN)), want_S, rtol=1e-5)
  rng = np.random.default_rng(1)
  a_N, w_T, u_TxR, v_TxC = (
    jnp.float32(rng.standard_normal(shape)) for shape in ((N,), (2,), (2, R), (2, C))
  )
  got_RxC = apply_update(LowRank(a_N, w_T, u_TxR, v_TxC), x)
  want_RxC = np.einsum('n,nrc->rc', a_N, d_NxRxC) + np.einsum(
    't,tr,tc->rc', w_T, u_TxR, v_TxC
  )
  assert np.max(np.abs(got_RxC - want_RxC)) < 1e-6 * np.abs(want_RxC).max() * 4


def test_residuals_do_not_cancel():
  """A matrix whose head is nearly all of it: its residual keeps its digits."""
  x = products(5)
  left_NxRxF = x.left_NxRxF * jnp.float32([1, 1e-3, 1e-3, 1e-3, 1e-3])
  x = Products(x.base_RxC, left_NxRxF, x.right_NxFxC)
  d_NxRxC = wide(x)
  got_NxN = gram(residual(x, solved(x, 1)))
  for i, d_RxC in enumerate(d_NxRxC):
    head = exact_head(d_RxC, 1)
    want = np.linalg.norm(d_RxC - head.y_KxR.T @ head.v_KxC)
    # the residual is 1e-3 of the matrix, of which float32 keeps 1e-7
    assert abs(np.sqrt(got_NxN[i, i]) - want) < 2e-3 * want
    dense = gram(residual(jnp.float32(d_NxRxC), solved(x, 1)))
    assert abs(np.sqrt(dense[i, i]) - want) < 2e-3 * want


@pytest.mark.parametrize('cols', [70, 9000])
def test_a_rank_that_the_head_takes_leaves_rounding(cols):
  """Below NO_RESIDUAL of methods/resmerge.py, which takes it for nothing."""
  x = products(2, 60, cols)
  norm_N = np.sqrt(np.diag(gram(residual(x, solved(x)))))
  assert np.all(norm_N < 1e-6 * np.sqrt(squares(x)))


def test_factors_much_larger_than_their_product():
  """right has two nearly parallel rows, whose parts of left cancel."""
  rng = np.random.default_rng(0)
  row_C = rng.standard_normal(C)
  right_FxC = np.float32([row_C, row_C + 1e-3 * rng.standard_normal(C)])
  left_RxF = np.float32(rng.standard_normal((R, 1)) * [1, -1])
  x = Products(jnp.zeros((R, C)), *(jnp.stack([y] * N) for y in (left_RxF, right_FxC)))
  want = np.linalg.norm(wide(x)[0])
  # factors are a thousand times their product, so of 1e-7 there remain 1e-4
  np.testing.assert_allclose(np.sqrt(squares(x)), want, rtol=3e-4)
  np.testing.assert_allclose(np.sqrt(np.diag(gram(x))), want, rtol=3e-4)


def test_counts_are_of_rows_and_columns_that_are_touched():
  x = products(2, 6, 5)
  x = Products(
    x.base_RxC, x.left_NxRxF.at[0, 2].set(0), x.right_NxFxC.at[0, :, 1:3].set(0)
  )
  assert counts(x).tolist() == [5 * 3, 30, 30]


def test_formed_differences_are_exact_and_weights_rounded():
  x = products(2, 6, 5)
  rng = np.random.default_rng(3)
  base_RxC, whole_RxC = jnp.float32(rng.standard_normal((2, 6, 5)))
  factors = x.left_NxRxF.at[1].set(0), x.right_NxFxC
  delta = formed(base_RxC, whole_RxC[None], (1,), factors, N)
  d_NxRxC = wide(x)
  for i in (0, 2):
    np.testing.assert_allclose(delta[i], d_NxRxC[i], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(delta.weights()[i], base_RxC + delta[i])
  np.testing.assert_array_equal(delta[1], whole_RxC - base_RxC)
  one = TaskVectors(base_RxC, whole_RxC[None])
  np.testing.assert_array_equal(one.weights()[0], whole_RxC)
