"""DARE: the masks are random and depend on nothing but their place; the rest is exact."""

import itertools
import math

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.dare import METHOD, METHOD_TIES, Dare, DareTies
from resmerge_jax.methods.random_masks import drop_masks
from tests.methods import groups, scanned
from tests.oracles.dare import dare, dare_ties

FLAVOURS = ('mergekit', 'peft', 'mergelm')
DENSITY = 0.3
N, ROWS, COLS = 3, 12, 9
WEIGHTS = [1.0, 0.5, 2.0]


drawn_masks = groups.compiled(drop_masks, static_argnums=(1, 2, 3))


def model() -> dict[str, np.ndarray]:
  """A matrix and a vector."""
  return {
    'a': groups.experts(N, ROWS, COLS, 0.7),
    'b': 0.1 * groups.experts(N, 1, COLS, 0.7),
  }


def masks(tensors: dict[str, np.ndarray], density: float) -> dict[str, np.ndarray]:
  return {
    name: np.asarray(drawn_masks(scanned.context(name, N), *x.shape[1:], density))
    for name, x in tensors.items()
  }


@pytest.mark.parametrize('flavour', FLAVOURS)
@pytest.mark.parametrize(('kind', 'oracle'), [(Dare, dare), (DareTies, dare_ties)])
def test_agrees_with_the_oracle_for_these_masks(kind, oracle, flavour: str):
  params, tensors = kind(flavour, DENSITY, 0.7), model()
  found = scanned.scan(params, tensors, weights=WEIGHTS)
  got, stats = scanned.merge(params, tensors, weights=WEIGHTS, found=found)
  drawn = masks(tensors, DENSITY)
  want = oracle(
    tensors, drawn, flavour=flavour, density=DENSITY, scale=0.7, weights=WEIGHTS
  )
  for name, update_RxC in got.items():
    # entries up to about 1 / density, a few roundings each
    np.testing.assert_allclose(update_RxC, want[name], atol=2e-6)
    fraction = drawn[name].mean((1, 2))
    if kind is DareTies and flavour == 'mergelm':  # trimmed again
      assert (np.asarray(stats[name]['kept']) <= fraction + 1e-6).all()
    else:
      np.testing.assert_allclose(stats[name]['kept'], fraction, rtol=1e-6)


@pytest.mark.parametrize('flavour', FLAVOURS)
@pytest.mark.parametrize('kind', [Dare, DareTies])
def test_density_of_nothing_and_of_all(kind, flavour: str):
  tensors = {'a': groups.experts(1, ROWS, COLS, 0.7)}
  for density in (0, 1):
    params = kind(flavour, density)
    found = scanned.scan(params, tensors)
    got, stats = scanned.merge(params, tensors, found=found)
    kept = tensors['a'][0]
    if kind is DareTies and flavour == 'mergelm':
      kept = np.where(
        abs(kept) >= np.sort(abs(kept).ravel())[-int(0.2 * kept.size) - 1], kept, 0
      )
    np.testing.assert_array_equal(got['a'], density * kept)
    assert (stats['a']['kept'] == 0) == (density == 0)


def test_masks_are_bernoulli_and_independent():
  rows = cols = 300
  size = rows * cols
  drawn = {
    name: np.asarray(drawn_masks(scanned.context(name, 2), rows, cols, DENSITY))
    for name in ('x', 'y')
  }
  # of expert, of tensor, of the row above, of the column to the left
  x0, x1, y0 = drawn['x'][0], drawn['x'][1], drawn['y'][0]
  deviation = math.sqrt(DENSITY * (1 - DENSITY) / size)
  for mask_RxC in (x0, x1, y0):
    assert abs(mask_RxC.mean() - DENSITY) < 5 * deviation
    for axis, n in ((0, rows), (1, cols)):  # chi-square of n sums, z-score below 5
      z = (mask_RxC.sum(axis) - DENSITY * n) / math.sqrt(DENSITY * (1 - DENSITY) * n)
      assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)
  pairs = [(x0, x1), (x0, y0), (x0[1:], x0[:-1]), (x0[:, 1:], x0[:, :-1])]
  for a, b in [*pairs, *itertools.pairwise((x0, x1.T, y0.T))]:
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / math.sqrt(a.size)


def test_the_mean_is_kept_and_the_sum_of_magnitudes_restored():
  x_RxC = abs(groups.experts(1, 300, 300, 0.0)[0])
  tensors = {'x': x_RxC[None]}
  got, _ = scanned.merge(Dare('peft', DENSITY), tensors)
  deviation = math.sqrt((1 - DENSITY) / DENSITY * (x_RxC.astype(float) ** 2).sum())
  assert abs(got['x'].sum() - x_RxC.sum()) < 5 * deviation
  got, _ = scanned.merge(Dare('mergekit', DENSITY), tensors)
  np.testing.assert_allclose(got['x'].sum(), x_RxC.sum(), rtol=1e-6)


def test_masks_depend_on_their_place_alone():
  whole = np.asarray(drawn_masks(scanned.context('a', N), ROWS, COLS, DENSITY))
  for rows in (5, 7):
    parts = [
      drawn_masks(
        scanned.context('a', N, start), min(rows, ROWS - start), COLS, DENSITY
      )
      for start in range(0, ROWS, rows)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
  alone = drawn_masks(scanned.context('a', 1), ROWS, COLS, DENSITY)
  np.testing.assert_array_equal(alone[0], whole[0])


@pytest.mark.parametrize(
  'params', [Dare('peft'), DareTies('peft'), DareTies('mergelm')]
)
def test_blocks_of_rows_give_the_same_bytes(params):
  tensors = model()
  found = scanned.scan(params, tensors)
  cut = scanned.scan(params, tensors, rows=5)
  for key, value in found.items():
    np.testing.assert_array_equal(cut[key], value)
  whole, _ = scanned.merge(params, tensors, found=found)
  for rows in (5, 7):
    parts, _ = scanned.merge(params, tensors, rows=rows, found=found)
    for name, update_RxC in whole.items():
      np.testing.assert_array_equal(parts[name], update_RxC)


def test_what_goes_in_blocks():
  for method, params in ((METHOD, Dare), (METHOD_TIES, DareTies)):
    assert [method.whole_matrix(params(f)) for f in FLAVOURS] == [True, False, False]
  assert [len(METHOD_TIES.scans(DareTies(f))) for f in FLAVOURS] == [0, 0, 3]


@pytest.mark.parametrize('kind', [Dare, DareTies])
def test_bad_parameters(kind):
  with pytest.raises(InputError) as error:
    kind('paper', 20, float('inf'))
  assert error.value.problems == (
    "flavour: got 'paper', expected mergekit | peft | mergelm",
    'density: got 20, expected a number from 0 to 1',
    'scale: got inf, expected a finite number',
  )
