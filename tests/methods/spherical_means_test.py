"""multislerp and karcher agree with float64 on the vectors themselves."""

from typing import Any

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.spherical_means import Karcher, MultiSlerp
from resmerge_jax.methods.table import method_of
from tests.methods import groups
from tests.oracles import sphere as oracle

BASE = np.random.default_rng(6).standard_normal((groups.ROWS, groups.COLS)) / 10
BASE = BASE.astype(np.float32)


def experts(n: int, likeness: float = 0.5) -> np.ndarray:
  return groups.experts(n, groups.ROWS, groups.COLS, likeness)


def merged(
  params: Any, delta_NxRxC: np.ndarray, weights: list | None = None
) -> tuple[np.ndarray, str]:
  """Update of experts BASE + D_i (as float32 rounds them), and the branch."""
  stored = TaskVectors(BASE, BASE + delta_NxRxC)
  update, stats = groups.merge_stored(params, stored, weights)
  return update, method_of(params).branches[stats['branch']]


def of_zero_base(params: Any, delta_NxRxC: np.ndarray) -> tuple[np.ndarray, str]:
  """The same of a base of zeros: D_i is exact."""
  update, stats = groups.merge_stored(params, groups.task_vectors(delta_NxRxC))
  return update, method_of(params).branches[stats['branch']]


@pytest.mark.parametrize('n', [2, 3, 5])
def test_multislerp(n: int):
  delta_NxRxC = experts(n)
  for weights in ([1.0] * n, list(range(1, n + 1))):
    got, branch = merged(MultiSlerp(), delta_NxRxC, weights)
    want = oracle.multislerp(delta_NxRxC, weights)
    # BASE + D_i is rounded: 6e-8 of a weight of up to one.
    np.testing.assert_allclose(got, want, atol=5e-7)
    assert branch == 'mean direction'


@pytest.mark.parametrize('apart', [1e-1, 1e-3])
def test_multislerp_of_directions_that_almost_cancel(apart: float):
  x_RxC, y_RxC = experts(2)
  delta_NxRxC = np.stack([x_RxC, -x_RxC + np.float32(apart) * y_RxC])
  got, branch = of_zero_base(MultiSlerp(), delta_NxRxC)
  want = oracle.multislerp(delta_NxRxC, [1, 1])
  # The norm of the sum is as good as the float32 entries it is made of.
  np.testing.assert_allclose(got, want, atol=1e-6 / apart)
  assert branch == 'mean direction'


@pytest.mark.parametrize('n', [2, 4])
def test_multislerp_where_directions_cancel_is_linear(n: int):
  x_RxC = experts(1)[0]
  signs = np.array([1, -1] * (n // 2), np.float32)
  delta_NxRxC = signs[:, None, None] * x_RxC
  delta_NxRxC[0] *= 2
  got, branch = of_zero_base(MultiSlerp(), delta_NxRxC)
  assert branch == 'linear'
  np.testing.assert_allclose(got, delta_NxRxC.mean(0), atol=1e-7)


def test_multislerp_without_any_weight_is_the_base():
  np.testing.assert_array_equal(merged(MultiSlerp(), experts(2), [0, 0])[0], 0.0)


@pytest.mark.parametrize('size', [3.0, 0.3, 1e-3])
@pytest.mark.parametrize('n', [2, 3, 5])
def test_karcher(n: int, size: float):
  delta_NxRxC = np.float32(size) * experts(n)
  weights = np.float64(BASE + delta_NxRxC)
  want = oracle.karcher(weights) - BASE
  # Coefficients of sum one are known to a few float32 units; a last step of `tol`
  # leaves about as much undone.
  for tol, left in ((0.0, 6e-7), (1e-5, 2e-5)):
    got, branch = merged(Karcher(tol=tol), delta_NxRxC)
    np.testing.assert_allclose(got, want, atol=left * np.abs(weights).max())
    assert branch == 'mean direction'


def test_karcher_needs_its_steps():
  """The mean direction, where it starts, differs from the Karcher mean."""
  delta_NxRxC = 3 * experts(3)
  start, _ = merged(Karcher(max_iter=0), delta_NxRxC)
  found, _ = merged(Karcher(), delta_NxRxC)
  assert np.abs(start - found).max() > 1e-3
  want = oracle.karcher(np.float64(BASE + delta_NxRxC), steps=0) - BASE
  np.testing.assert_allclose(start, want, atol=2e-6)


def test_karcher_leaves_zero_weights_out_but_for_the_norm():
  x_RxC, y_RxC = experts(2)
  zero = 0 * x_RxC
  delta_NxRxC = np.stack([zero, x_RxC, y_RxC])  # the base is zero
  got, _ = of_zero_base(Karcher(), delta_NxRxC)
  want = oracle.karcher(delta_NxRxC)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_karcher_of_opposite_weights_is_the_first_direction():
  x_RxC = experts(1)[0]
  delta_NxRxC = np.stack([x_RxC, -3 * x_RxC])
  got, branch = of_zero_base(Karcher(), delta_NxRxC)
  assert branch == 'cancelled'
  np.testing.assert_allclose(got, 2 * x_RxC, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('params', [MultiSlerp(), Karcher()], ids=['multi', 'karcher'])
def test_edges(params: Any):
  for n in (1, 3):
    np.testing.assert_array_equal(merged(params, 0 * experts(n))[0], 0.0)
  one = experts(1)
  np.testing.assert_array_equal(merged(params, one)[0], (BASE + one[0]) - BASE)
  same, _ = merged(params, np.tile(one, (3, 1, 1)))
  np.testing.assert_allclose(same, one[0], atol=5e-7)


@pytest.mark.parametrize('wrong', [{'max_iter': -1}, {'tol': -1e-3}])
def test_parameters_out_of_range(wrong: dict):
  with pytest.raises(InputError, match=next(iter(wrong))):
    Karcher(**wrong)
