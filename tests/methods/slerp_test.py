"""slerp and nuslerp agree with float64, on weights and on task vectors."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.sphere import BRANCHES
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import LowRank
from resmerge_jax.methods.slerp import NUSLERP, NuSlerp, Slerp
from resmerge_jax.methods.table import method_of
from tests.methods import groups
from tests.oracles import sphere as oracle

BASE = np.random.default_rng(5).standard_normal((groups.ROWS, groups.COLS)) / 10
BASE = BASE.astype(np.float32)


def merged(
  params: Any, delta_NxRxC: np.ndarray, weights: list | None = None
) -> tuple[np.ndarray, dict]:
  """Update and stats of experts BASE + D_i (as float32 rounds them)."""
  return groups.merge_stored(params, TaskVectors(BASE, BASE + delta_NxRxC), weights)


def pair(likeness: float = 0.5) -> np.ndarray:
  return groups.experts(2, groups.ROWS, groups.COLS, likeness)


def want_of(on: str, delta_NxRxC: np.ndarray, merge: Any) -> np.ndarray:
  """The update that `merge` makes of weights or of task vectors, float64."""
  weights = np.float64(BASE + delta_NxRxC)
  return merge(weights) - BASE if on == 'weights' else merge(weights - BASE)


@pytest.mark.parametrize('on', ['weights', 'task_vectors'])
@pytest.mark.parametrize('t', [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize('size', [1.0, 1e-3])  # the second: weights almost parallel
def test_slerp(on: str, t: float, size: float):
  delta_NxRxC = np.float32(size) * pair()
  got, stats = merged(Slerp(t=t, on=on), delta_NxRxC)
  want = want_of(on, delta_NxRxC, lambda x: oracle.slerp(x, t, straight=0.9995))
  np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())
  straight = on == 'weights' and size < 1
  assert BRANCHES[stats['branch']] == ('lerp' if straight else 'slerp')


@pytest.mark.parametrize('on', ['weights', 'task_vectors'])
@pytest.mark.parametrize('flatten', [True, False])
@pytest.mark.parametrize('weights', [[1.0, 1.0], [3.0, 1.0], [1.0, -1.0]])
def test_nuslerp(on: str, flatten: bool, weights: list):
  total = sum(weights)
  t = weights[1] / total if total else 0.5

  def merge(x_NxRxC: np.ndarray) -> np.ndarray:
    if flatten:
      return oracle.slerp(x_NxRxC, t)
    return np.stack([oracle.slerp(rows, t) for rows in x_NxRxC.transpose(1, 0, 2)])

  delta_NxRxC = pair()
  got, _ = merged(NuSlerp(on=on, flatten=flatten), delta_NxRxC, weights)
  np.testing.assert_allclose(got, want_of(on, delta_NxRxC, merge), atol=1e-6)


def test_on_task_vectors_it_is_a_combination():
  for params in (Slerp(on='task_vectors'), NuSlerp()):
    merge = functools.partial(groups.merge, params, None, head=None)
    update, _ = jax.eval_shape(merge, pair())
    assert isinstance(update, LowRank)


def test_no_expert_changed_a_weight():
  for params in (Slerp(), Slerp(on='task_vectors'), NuSlerp(on='weights'), NuSlerp()):
    np.testing.assert_array_equal(merged(params, 0 * pair())[0], 0.0)


@pytest.mark.parametrize('factor', [1.0, -1.0, 0.0, -2.0])
def test_parallel_opposite_and_zero_task_vectors(factor: float):
  x_RxC = groups.experts(1, groups.ROWS, groups.COLS, 0.0)[0]
  delta_NxRxC = np.stack([x_RxC, np.float32(factor) * x_RxC])
  weight = 0.5**0.5 if factor == 0 else 0.5  # a zero vector counts as orthogonal
  want = weight * delta_NxRxC.sum(0)
  for params in (Slerp(on='task_vectors'), NuSlerp(), NuSlerp(flatten=False)):
    got, stats = groups.merge_stored(params, groups.task_vectors(delta_NxRxC))
    np.testing.assert_allclose(got, want, atol=1e-6)
    if stats:
      code = 2 if factor < 0 else 1 if factor else 0
      assert stats['branch'] == code


def test_rows_may_come_in_blocks():
  params = NuSlerp(flatten=False)
  assert not NUSLERP.whole_matrix(params)
  assert NUSLERP.whole_matrix(NuSlerp())
  delta_NxRxC = pair()
  whole, *parts = [
    groups.merge_stored(params, groups.task_vectors(delta_NxRxC[:, rows]))[0]
    for rows in (slice(None), slice(5), slice(5, None))
  ]
  np.testing.assert_array_equal(np.vstack(parts), whole)


@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('params', [Slerp(), NuSlerp()], ids=['slerp', 'nuslerp'])
def test_two_experts_only(n: int, params: Any):
  with pytest.raises(InputError, match=f'slerp: got {n} experts, expected two'):
    groups.merge(params, None, groups.experts(n, 4, 3, 0.5), None)
  assert method_of(params).expects(params, n)
  assert method_of(params).expects(params, 2) is None


@pytest.mark.parametrize(
  ('kind', 'wrong'),
  [(Slerp, {'t': np.inf}), (Slerp, {'on': 'base'}), (NuSlerp, {'flatten': 1})],
)
def test_parameters_out_of_range(kind: type, wrong: dict):
  with pytest.raises(InputError, match=next(iter(wrong))):
    kind(**wrong)
