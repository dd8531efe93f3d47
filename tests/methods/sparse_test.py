"""Breadcrumbs, DELLA, SCE and NearSwap agree with float64."""

import math

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.breadcrumbs import Breadcrumbs
from resmerge_jax.methods.della import Della, stay_masks
from resmerge_jax.methods.nearswap import METHOD, NearSwap
from resmerge_jax.methods.sce import Sce
from tests.methods import groups, scanned
from tests.oracles import sparse

N, ROWS, COLS = 3, 12, 9
WEIGHTS = [1.0, -0.5, 2.0]
TOLERANCE = 1e-6  # a few float32 roundings of entries up to about 2


def coarse() -> np.ndarray:
  """Multiples of a power of two: magnitudes tie, sums cancel."""
  rng = np.random.default_rng(0)
  return (rng.integers(-4, 5, (N, ROWS, COLS)) / 8).astype(np.float32)


def merged(params, delta_NxRxC: np.ndarray, weights=WEIGHTS):
  updates, stats = scanned.merge(params, {'x': delta_NxRxC}, weights=weights)
  return updates['x'], stats['x']


@pytest.mark.parametrize('elect', [True, False])
@pytest.mark.parametrize(
  ('density', 'gamma'), [(0.5, 0.1), (0.95, 0.1), (1, 0.1), (0, 0.1), (0.3, 0)]
)
def test_breadcrumbs(elect: bool, density: float, gamma: float):
  delta_NxRxC = coarse()
  update, stats = merged(Breadcrumbs(density, gamma, elect), delta_NxRxC)
  want = sparse.breadcrumbs(
    delta_NxRxC, density=density, gamma=gamma, elect=elect, weights=WEIGHTS
  )
  np.testing.assert_allclose(update, want, atol=TOLERANCE)
  kept = int(density * ROWS * COLS) / (ROWS * COLS)
  np.testing.assert_allclose(stats['kept'], kept, rtol=1e-6)


@pytest.mark.parametrize('elect', [True, False])
def test_della_for_its_masks(elect: bool):
  delta_NxRxC, params = groups.experts(N, ROWS, COLS, 0.7), Della(elect=elect)
  update, stats = merged(params, delta_NxRxC)
  masks_NxRxC = np.asarray(
    stay_masks(groups.task_vectors(delta_NxRxC), scanned.context('x', N), params)
  )
  want = sparse.della(delta_NxRxC, masks_NxRxC, elect=elect, weights=WEIGHTS)
  np.testing.assert_allclose(update, want, atol=TOLERANCE)
  np.testing.assert_allclose(stats['kept'], masks_NxRxC.mean((1, 2)), rtol=1e-6)


def test_della_keeps_large_entries_more_often():
  rows = 20000
  x_RxC = np.random.default_rng(0).integers(-4, 5, (rows, COLS)).astype(np.float32)
  params = Della(density=0.4, epsilon=0.3)
  delta_NxRxC = TaskVectors(0 * x_RxC, x_RxC[None])
  mask_RxC = np.asarray(stay_masks(delta_NxRxC, scanned.context('x', 1), params))[0]
  chance_RxC = sparse.chance(x_RxC, params.density, params.epsilon)
  for chance in np.unique(chance_RxC.round(6)):  # one per rank
    kept = mask_RxC[np.isclose(chance_RxC, chance)]
    assert abs(kept.mean() - chance) < 5 * math.sqrt(chance * (1 - chance) / kept.size)


def test_della_of_nothing_all_and_one_column():
  delta_NxRxC = coarse()[:1]
  for density in (0, 1):
    update, _ = merged(Della(density=density), delta_NxRxC, [1.0])
    np.testing.assert_array_equal(update, density * delta_NxRxC[0])
  update, _ = merged(Della(), delta_NxRxC[:, :, :1], [1.0])
  assert np.isfinite(update).all()


@pytest.mark.parametrize('select', [0, 0.1, 0.5, 1])
@pytest.mark.parametrize('kind', ['coarse', 'general', 'equal'])
def test_sce(select: float, kind: str):
  # 'coarse' has magnitudes that tie: variances of quarters, N = 4, are exact
  delta_NxRxC = {
    'coarse': np.concatenate([coarse(), coarse()[:1]]),
    'general': groups.experts(4, ROWS, COLS, 0.7),
    'equal': np.stack([coarse()[0]] * 4),
  }[kind]
  update, stats = merged(Sce(select), delta_NxRxC, None)
  want = sparse.sce(delta_NxRxC, select=select)
  np.testing.assert_allclose(update, want, atol=TOLERANCE)
  if update.any():
    np.testing.assert_allclose(np.sum(stats['weights']), 1, rtol=1e-6)


def test_nearswap_moves_no_entry_by_more_than_t():
  delta_NxRxC = coarse()[:1]
  update, _ = merged(NearSwap(0.2), delta_NxRxC, None)
  assert np.abs(delta_NxRxC).max() > 0.2
  np.testing.assert_array_equal(
    update, np.clip(delta_NxRxC[0], -np.float32(0.2), np.float32(0.2))
  )
  assert METHOD.expects(NearSwap(), 1) is None
  assert METHOD.expects(NearSwap(), 3) == '1 beside the base'


@pytest.mark.parametrize(
  ('make', 'problem'),
  [
    (lambda: Breadcrumbs(density=2), 'density: got 2, expected a number from 0 to 1'),
    (lambda: Breadcrumbs(gamma=-1), 'gamma: got -1, expected a number from 0 to 1'),
    (lambda: Sce(select=2), 'select: got 2, expected a number from 0 to 1'),
    (lambda: NearSwap(t=-1), 't: got -1, expected a finite number, not negative'),
    (
      lambda: Della(density=0.1),
      'epsilon: got 0.15, expected density - epsilon and density + epsilon between 0 and 1',
    ),
  ],
)
def test_bad_parameters(make, problem: str):
  with pytest.raises(InputError) as error:
    make()
  assert error.value.problems == (problem,)
