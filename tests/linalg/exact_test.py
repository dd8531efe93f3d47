"""Heads by the host agree with float64 LAPACK: exact, or refined to an estimate."""

import numpy as np
import pytest

from resmerge_jax.linalg.exact import (
  SETTLED,
  SMALL,
  exact_head,
  host_head,
  refined_head,
)
from resmerge_jax.linalg.head import block_size
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
  y_KxR, v_KxC, sigma_K, sigma_next, error, certified = exact_head(delta_RxC, k)
  assert (error, certified) == (2.0**-24, True)
  assert y_KxR.shape == (k, delta_RxC.shape[0])
  assert v_KxC.shape == (k, delta_RxC.shape[1])
  np.testing.assert_allclose(v_KxC @ v_KxC.T, np.eye(k), atol=1e-12, err_msg=str(name))
  np.testing.assert_allclose(sigma_K, np.linalg.norm(y_KxR, axis=1))
  np.testing.assert_allclose(sigma_K, sigma[:k], atol=2e-8 * sigma[0] + 1e-300)
  np.testing.assert_allclose(
    sigma_next, (*sigma, 0.0)[k], atol=2e-8 * sigma[0] + 1e-300
  )
  if heads.relative_gap(sigma, k) >= 1e-6:
    assert heads.distance(heads.product(y_KxR, v_KxC), want) < heads.exact_tolerance(
      sigma, k
    ), name


def test_a_tie_gives_one_of_the_best_approximations():
  delta_RxC = heads.larger(300, 200, 2)['tie_at_k']
  y_KxR, v_KxC, sigma_K, sigma_next, _, _ = exact_head(delta_RxC, 2)
  _, sigma = heads.lapack(delta_RxC, 2)
  left = np.linalg.norm(delta_RxC - heads.product(y_KxR, v_KxC))
  np.testing.assert_allclose(left, np.linalg.norm(sigma[2:]), rtol=1e-12)
  np.testing.assert_allclose([*sigma_K, sigma_next], 1.0, rtol=1e-6)


def test_float32_input_is_squared_in_float64():
  delta_RxC = np.float32(1e-30) * np.random.default_rng(0).standard_normal(
    (20, 30), np.float32
  )
  want, _ = heads.lapack(delta_RxC, 3)
  found = exact_head(delta_RxC, 3)
  assert heads.distance(heads.product(found.y_KxR, found.v_KxC), want) < 1e-9


def start_near(delta_RxC: np.ndarray, m: int, noise: float) -> np.ndarray:
  """The leading right singular vectors, blurred and not orthonormal any more."""
  vt = np.linalg.svd(delta_RxC.astype(np.float64), full_matrices=False)[2][:m]
  rng = np.random.default_rng(0)
  return (vt + noise * rng.standard_normal(vt.shape)).astype(np.float32)


@pytest.mark.parametrize(('rows', 'cols', 'k'), [(400, 300, 1), (300, 400, 3)])
@pytest.mark.parametrize('noise', [1e-6, 1e-3, 0.1])
def test_an_accepted_refinement_is_as_good_as_it_says(
  rows: int, cols: int, k: int, noise: float
):
  accepted = set()
  for name, delta_RxC in heads.larger(rows, cols, k).items():
    found = refined_head(delta_RxC, k, start_near(delta_RxC, 2 * block_size(k), noise))
    if found is None or name == 'zero':
      continue
    accepted.add(name)
    want, sigma = heads.lapack(delta_RxC, k)
    got = heads.product(found.y_KxR, found.v_KxC)
    assert heads.distance(got, want) <= found.error + heads.exact_tolerance(sigma, k), (
      name
    )
    assert found.error <= SETTLED, name
    assert not found.certified
    np.testing.assert_allclose(found.sigma_K, sigma[:k], rtol=1e-6, atol=2e-8)
    np.testing.assert_allclose(found.sigma_next, sigma[k], rtol=1e-2, atol=1e-7)
  assert 'strong_head' in accepted


def test_host_head_takes_the_exact_way_where_refinement_fails():
  found = heads.larger(400, 300, 1)
  noise_MxC = np.random.default_rng(0).standard_normal((8, 300)).astype(np.float32)
  hopeless = host_head(found['near_tie_0.001'], 1, noise_MxC)
  assert hopeless.certified
  refined = host_head(found['strong_head'], 1, noise_MxC)
  assert not refined.certified
  small = host_head(found['strong_head'][:SMALL], 1, noise_MxC)
  assert small.certified
