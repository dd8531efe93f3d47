"""STAR and rank masks agree with LAPACK in float64."""

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.rank_mask import RankMask
from resmerge_jax.methods.star import Star
from tests.methods import groups
from tests.methods.float64_runs import merged
from tests.oracles import spectral

ROWS, COLS = groups.ROWS, groups.COLS
ROUNDED = 1e-6  # absolute; experts have norms of about 1, products are in float32


def general(n: int = 3, rows: int = ROWS, cols: int = COLS) -> np.ndarray:
  return groups.experts(n, rows, cols, 0.7)


@pytest.mark.parametrize('eta', [1.0, 40.0, 99.0])
@pytest.mark.parametrize('shape', [(ROWS, COLS), (COLS, ROWS)])
def test_star_agrees_with_the_oracle(eta: float, shape: tuple[int, int]):
  delta_NxRxC = general(3, *shape)
  update, stats = merged(Star(eta=eta), delta_NxRxC)
  want, ratios = spectral.star(delta_NxRxC, eta)
  np.testing.assert_allclose(update, want, atol=ROUNDED)
  np.testing.assert_allclose(stats['norm_ratio'], ratios, rtol=1e-6)
  assert stats['branch'] == 'ok'
  if eta == 1.0:
    np.testing.assert_array_equal(stats['rank'], 1)


def test_all_of_the_nuclear_norm_is_the_mean():
  delta_NxRxC = general()
  update, stats = merged(Star(eta=100.0), delta_NxRxC)
  np.testing.assert_allclose(update, delta_NxRxC.mean(0), atol=ROUNDED)
  np.testing.assert_allclose(stats['norm_ratio'], 1.0, rtol=1e-6)


def test_the_nuclear_norm_of_one_expert_stays():
  delta_NxRxC = general(1)
  update, _ = merged(Star(), delta_NxRxC)
  norms = [np.linalg.norm(x, 'nuc') for x in (update, delta_NxRxC[0])]
  np.testing.assert_allclose(*norms, rtol=1e-6)


def test_flat_spectra_grow():
  delta_RxC = np.eye(8, dtype=np.float32) * np.linspace(1, 1.01, 8, dtype=np.float32)
  update, stats = merged(Star(eta=40.0), delta_RxC[None])
  assert stats['rank'] == 4  # 3.2 of 8 equal ones
  np.testing.assert_allclose(stats['norm_ratio'], 2**0.5, rtol=1e-2)
  np.testing.assert_allclose(
    np.linalg.norm(update), stats['norm_ratio'] * np.linalg.norm(delta_RxC), rtol=1e-6
  )


def test_rounding_adds_nothing_to_the_nuclear_norm_of_low_rank():
  rng = np.random.default_rng(0)
  delta_RxC = np.outer(*(rng.integers(1, 9, size) for size in (300, 200)))
  delta_1xRxC = delta_RxC[None].astype(np.float32)
  for eta in (40.0, 100.0):
    update, stats = merged(Star(eta=eta), delta_1xRxC)
    np.testing.assert_allclose(update, delta_1xRxC[0], rtol=1e-6)
    assert stats['rank'] == 1


def test_star_of_unchanged_experts():
  delta_NxRxC = general()
  delta_NxRxC[1] = 0
  update, stats = merged(Star(), delta_NxRxC)
  np.testing.assert_allclose(update, spectral.star(delta_NxRxC)[0], atol=ROUNDED)
  assert (stats['rank'][1], stats['norm_ratio'][1]) == (0, 0.0)
  update, stats = merged(Star(), 0 * delta_NxRxC)
  np.testing.assert_array_equal(update, 0.0)
  assert stats['branch'] == 'zero'


def test_a_tie_at_the_cut_is_said():
  update, stats = merged(Star(), np.eye(8, dtype=np.float32)[None])
  assert stats['branch'] == 'ill_posed'
  assert np.isfinite(update).all()


@pytest.mark.parametrize('ratio', [0.0, 0.5, 1.0])
def test_rank_mask_agrees_with_the_oracle(ratio: float):
  delta_NxRxC = general()
  update, stats = merged(RankMask(rank_ratio=ratio), delta_NxRxC)
  want = spectral.rank_mask(delta_NxRxC, ratio, 0.3)
  np.testing.assert_allclose(update, want, atol=ROUNDED)
  kept = {0.0: 3, 0.5: 4, 1.0: COLS}[ratio]
  np.testing.assert_array_equal(stats['rank'], kept)
  sigma_NxS = np.linalg.svd(delta_NxRxC.astype(np.float64), compute_uv=False)
  share_N = (sigma_NxS[:, :kept] ** 2).sum(1) / (sigma_NxS**2).sum(1)
  np.testing.assert_allclose(stats['kept_energy'], share_N, rtol=1e-6)


def test_parameters():
  with pytest.raises(InputError, match=r'eta: got 0, expected 0 < eta <= 100'):
    Star(eta=0)
  with pytest.raises(InputError, match=r'rank_ratio: got 2, expected a number in'):
    RankMask(rank_ratio=2)
  with pytest.raises(InputError, match='scale'):
    RankMask(scale=np.nan)
