"""The generator of test matrices keeps its promises."""

import numpy as np
import pytest

from tests.spectra import ALL, GAPS, Spectrum


@pytest.mark.parametrize('spectrum', ALL, ids=str)
def test_matrix_has_the_spectrum(spectrum: Spectrum):
  matrix = spectrum.matrix()
  assert matrix.dtype == np.float32
  assert matrix.shape == (spectrum.rows, spectrum.cols)
  sigmas = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
  np.testing.assert_allclose(sigmas, spectrum.sigmas, atol=2e-7 * spectrum.sigmas[0])


def test_near_ties_have_their_gap_at_k():
  for spectrum in ALL:
    if spectrum.name.startswith('near_tie_'):
      gap = float(spectrum.name.removeprefix('near_tie_'))
      assert gap in GAPS
      assert spectrum.relative_gap == pytest.approx(gap, rel=1e-9)


def test_names_are_unique_and_matrices_reproducible():
  assert len({str(spectrum) for spectrum in ALL}) == len(ALL)
  np.testing.assert_array_equal(ALL[0].matrix(3), ALL[0].matrix(3))
  assert not np.array_equal(ALL[0].matrix(3), ALL[0].matrix(4))
