"""Exact heads agree with float64 LAPACK."""

import numpy as np
import pytest

from resmerge_jax.linalg.exact import exact_head
from tests.linalg import heads
from tests.spectra import ALL, Spectrum


@pytest.mark.parametrize('k', range(1, 9))
def test_head_agrees_with_lapack(k: int):
  for spectrum in (s for s in ALL if s.k == k):
    assert_exact(spectrum.matrix(), k, spectrum)


@pytest.mark.parametrize(('rows', 'cols', 'k'), [(300, 200, 1), (150, 900, 8)])
def test_larger_matrices(rows: int, cols: int, k: int):
  for name, delta_RxC in heads.larger(rows, cols, k).items():
    assert_exact(delta_RxC, k, name)


def assert_exact(delta_RxC: np.ndarray, k: int, name: Spectrum | str) -> None:
  k = min(k, *delta_RxC.shape)
  want, sigma = heads.lapack(delta_RxC, k)
  y_KxR, v_KxC, sigma_K, sigma_next = exact_head(delta_RxC, k)
  assert y_KxR.shape == (k, delta_RxC.shape[0])
  assert v_KxC.shape == (k, delta_RxC.shape[1])
  np.testing.assert_allclose(v_KxC @ v_KxC.T, np.eye(k), atol=1e-12, err_msg=str(name))
  np.testing.assert_allclose(sigma_K, np.linalg.norm(y_KxR, axis=1))
  np.testing.assert_allclose(sigma_K, sigma[:k], atol=2e-8 * sigma[0] + 1e-300)
  np.testing.assert_allclose(
    sigma_next, (*sigma, 0.0)[k], atol=2e-8 * sigma[0] + 1e-300
  )
  if heads.relative_gap(sigma, k) >= 1e-6:
    assert heads.distance(heads.product(y_KxR, v_KxC), want) < 1e-9, name


def test_a_tie_gives_one_of_the_best_approximations():
  delta_RxC = heads.larger(300, 200, 2)['tie_at_k']
  y_KxR, v_KxC, sigma_K, sigma_next = exact_head(delta_RxC, 2)
  _, sigma = heads.lapack(delta_RxC, 2)
  left = np.linalg.norm(delta_RxC - heads.product(y_KxR, v_KxC))
  np.testing.assert_allclose(left, np.linalg.norm(sigma[2:]), rtol=1e-12)
  np.testing.assert_allclose([*sigma_K, sigma_next], 1.0, rtol=1e-6)


def test_float32_input_is_squared_in_float64():
  delta_RxC = np.float32(1e-30) * np.random.default_rng(0).standard_normal(
    (20, 30), np.float32
  )
  want, _ = heads.lapack(delta_RxC, 3)
  y_KxR, v_KxC, _, _ = exact_head(delta_RxC, 3)
  assert heads.distance(heads.product(y_KxR, v_KxC), want) < 1e-9
