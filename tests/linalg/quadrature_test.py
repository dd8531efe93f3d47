"""Entropies of spectra: whole, and estimated with an error that tells the truth."""

import jax
import numpy as np
import pytest

from resmerge_jax.linalg.quadrature import (
  Entropy,
  entropy_beside,
  entropy_of,
  spectrum,
  tridiagonals,
)
from tests.spectra import spectrum_matrix

ROWS, COLS = 300, 200
SPECTRA = {
  'flat': np.ones(COLS),
  'power': np.arange(1, COLS + 1) ** -0.7,
  'steep': 0.9 ** np.arange(COLS),
  'rank 5': np.where(np.arange(COLS) < 5, 1.0, 0.0),
}
estimated = jax.jit(tridiagonals)


def matrix(name: str, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return spectrum_matrix(rng, ROWS, COLS, 3 * SPECTRA[name])


def entropy(sigma: np.ndarray) -> float:
  p = sigma[sigma > 1e-6] ** 2 / (sigma**2).sum()
  return float(-(p * np.log(p)).sum())


@pytest.mark.parametrize('name', SPECTRA)
@pytest.mark.parametrize('turned', [False, True])
def test_the_whole_spectrum(name, turned):
  x = matrix(name).T if turned else matrix(name)
  found = entropy_of(jax.jit(spectrum)(x))
  # float32: COLS values of 1e-7 of the largest, each times its logarithm of 16.
  assert found.value == pytest.approx(entropy(SPECTRA[name]), abs=1e-4)
  assert found.error == 0


@pytest.mark.parametrize('name', SPECTRA)
def test_the_estimate_is_within_its_error(name):
  x, sigma = matrix(name), SPECTRA[name]
  v = np.linalg.svd(x.astype(np.float64), full_matrices=False)[2][:1].astype(np.float32)
  chain = {key: np.asarray(value) for key, value in estimated(x, v).items()}
  p = sigma**2 / (sigma**2).sum()
  found = entropy_beside(
    chain['diagonal_VxM'], chain['beside_VxM'], chain['square_V'], 1 - p[0]
  )
  rest = p[1:][p[1:] > 0]
  want = float(-(rest * np.log(rest)).sum())
  # Three standard errors, beside rounding.
  assert abs(found.value - want) < 3 * found.error + 1e-4
  assert found.error < 0.1  # of a spectrum whose first few values hold most


def test_nothing_is_left():
  zero = np.zeros((ROWS, COLS), np.float32)
  assert not np.asarray(jax.jit(spectrum)(zero)).any()
  assert entropy_of(np.zeros(4)) == Entropy(0.0, 0.0)
  chain = {k: np.asarray(x) for k, x in estimated(zero, np.zeros((1, COLS))).items()}
  found = entropy_beside(
    chain['diagonal_VxM'], chain['beside_VxM'], chain['square_V'], 0.0
  )
  assert found == Entropy(0.0, 0.0)
