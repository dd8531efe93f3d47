"""SVC agrees with LAPACK in float64, on the updates of other methods."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.short_side import BLOCK
from resmerge_jax.methods.base import Dense, LowRank
from resmerge_jax.methods.svc import POST, Svc
from resmerge_jax.methods.table import POSTS
from tests.methods import groups
from tests.oracles import spectral

ROWS, COLS = groups.ROWS, groups.COLS
ROUNDED = 2e-7  # absolute; updates have norms of about 2


def general(rows: int = ROWS, cols: int = COLS, seed: int = 0) -> np.ndarray:
  return groups.experts(3, rows, cols, 0.7, seed)


@functools.cache
def program(alpha: float) -> Any:
  def calibrated(update: Any, delta_NxRxC: jax.Array) -> tuple:
    new, stats = POST.apply(
      update,
      groups.task_vectors(delta_NxRxC),
      context=groups.context(len(delta_NxRxC)),
      params=Svc(alpha),
    )
    return groups.applied(new, delta_NxRxC), stats

  return groups.compiled(calibrated)


def calibrated(
  update: np.ndarray | LowRank, delta_NxRxC: np.ndarray, alpha: float = 1.0
) -> tuple[np.ndarray, dict[str, Any]]:
  given = update if isinstance(update, LowRank) else Dense(np.float32(update))
  with jax.enable_x64(True):
    new, stats = jax.tree.map(np.asarray, program(alpha)(given, delta_NxRxC))
  assert new.dtype == np.float32
  assert all(x.dtype == np.float32 for x in stats.values())
  return new, stats


def assert_agrees(
  update: np.ndarray, delta_NxRxC: np.ndarray, alpha: float = 1.0
) -> None:
  got, stats = calibrated(update, delta_NxRxC, alpha)
  want, gamma = spectral.svc(update, delta_NxRxC, alpha)
  np.testing.assert_allclose(got, want, atol=ROUNDED)
  for name in ('min', 'mean', 'max'):
    value = getattr(np, name)(gamma)
    np.testing.assert_allclose(stats[f'gamma_{name}'], value, rtol=1e-5)


@pytest.mark.parametrize('alpha', [0.1, 1.0])
@pytest.mark.parametrize('shape', [(ROWS, COLS), (COLS, ROWS)])
def test_agrees_with_the_oracle(alpha: float, shape: tuple[int, int]):
  delta_NxRxC = general(*shape)
  rng = np.random.default_rng(0)
  for update in (
    delta_NxRxC.sum(0),
    delta_NxRxC.mean(0),
    delta_NxRxC[0] - delta_NxRxC[2],
    np.outer(*(rng.integers(-4, 5, size) for size in shape)) / 64,  # rank 1, exactly
  ):
    assert_agrees(np.float32(update), delta_NxRxC, alpha)


@pytest.mark.parametrize('shape', [(2 * BLOCK + 9, 4), (4, 2 * BLOCK + 9)])
def test_several_blocks(shape: tuple[int, int]):
  delta_NxRxC = general(*shape)
  assert_agrees(delta_NxRxC.sum(0), delta_NxRxC)


def test_low_rank_updates():
  delta_NxRxC = general()
  rng = np.random.default_rng(0)
  update = LowRank(
    *(
      np.float32(rng.standard_normal(shape))
      for shape in ((3,), (2,), (2, ROWS), (2, COLS))
    )
  )
  dense = np.asarray(groups.applied(update, delta_NxRxC))
  got, _ = calibrated(update, delta_NxRxC)
  want, _ = spectral.svc(dense, delta_NxRxC, 1.0)
  np.testing.assert_allclose(got, want, atol=2e-6)  # two float32 sums of the terms


def test_a_sum_never_grows_and_identical_experts_become_one():
  delta_NxRxC = general()
  _, stats = calibrated(delta_NxRxC.sum(0), delta_NxRxC)
  assert stats['gamma_max'] <= 1.0
  same = np.stack([delta_NxRxC[0]] * 3)
  got, stats = calibrated(same.sum(0), same)
  np.testing.assert_allclose(got, delta_NxRxC[0], atol=ROUNDED)
  np.testing.assert_allclose(stats['gamma_min'], 1 / 3, rtol=1e-6)


def test_zero_updates_and_zero_experts():
  delta_NxRxC = general()
  for update in (0 * delta_NxRxC[0], delta_NxRxC[0]):
    got, stats = calibrated(update, 0 * delta_NxRxC)
    np.testing.assert_allclose(got, update, atol=ROUNDED)  # every share is alpha
    assert all(value == 1.0 for value in stats.values())
  got, _ = calibrated(0 * delta_NxRxC[0], delta_NxRxC)
  np.testing.assert_array_equal(got, 0.0)


def test_one_row_is_a_vector_and_stays():
  delta_NxRxC = general(1, 5)
  got, stats = calibrated(delta_NxRxC.sum(0), delta_NxRxC)
  np.testing.assert_array_equal(got, delta_NxRxC.sum(0))
  assert stats == {}


def test_one_column():
  delta_NxRxC = general(5, 1)
  assert_agrees(delta_NxRxC.sum(0), delta_NxRxC)


def test_order_scale_and_rotation():
  delta_NxRxC = general()
  update = delta_NxRxC.sum(0)
  want, _ = calibrated(update, delta_NxRxC)
  got, _ = calibrated(update, delta_NxRxC[[2, 0, 1]])
  np.testing.assert_allclose(got, want, atol=ROUNDED)
  got, _ = calibrated(8 * update, 8 * delta_NxRxC)
  np.testing.assert_allclose(got / 8, want, atol=ROUNDED)
  rng = np.random.default_rng(1)
  q, p = (np.linalg.qr(rng.standard_normal((s, s)))[0] for s in (ROWS, COLS))
  got, _ = calibrated(q @ update @ p, (q @ delta_NxRxC @ p).astype(np.float32))
  np.testing.assert_allclose(got, q @ want @ p, atol=1e-6)  # rotated in float32


def test_parameters_and_table():
  assert POSTS['svc'] is POST
  assert POST.whole_matrix
  with pytest.raises(
    InputError, match='alpha: got 0, expected a finite number above 0'
  ):
    Svc(alpha=0)
