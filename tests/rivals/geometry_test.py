"""Agreement with mergekit 0.1.5 on random tensors: slerp and its relatives."""

from typing import Any

import numpy as np
import pytest

from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.model_stock import ModelStock
from resmerge_jax.methods.slerp import NuSlerp, Slerp
from resmerge_jax.methods.spherical_means import Karcher, MultiSlerp
from tests.methods import groups

torch = pytest.importorskip('torch')
mergekit = pytest.importorskip('mergekit.merge_methods.api')

ROWS, COLS = 40, 24
BASE = np.random.default_rng(7).normal(0, 0.05, (ROWS, COLS)).astype(np.float32)
# Weights that differ much, and weights as RL leaves them.
sizes = pytest.mark.parametrize('size', [1.0, 1e-2])
UNITS = 4  # float32 units of the largest weight: sums of a few terms on either side


def experts(n: int, size: float, likeness: float = 0.5) -> TaskVectors:
  delta_NxRxC = np.float32(size) * groups.experts(n, ROWS, COLS, likeness)
  return TaskVectors(BASE, BASE + delta_NxRxC)


def rival(
  method: str, stored: TaskVectors, base: bool, **parameters: Any
) -> np.ndarray:
  """mergekit's merged weights. `base`: whether it is told of the base."""
  arrays = [*([BASE] if base else []), *stored.experts_NxRxC]
  tensors = [torch.from_numpy(np.array(x)) for x in arrays]
  merged = mergekit.merge_tensors(
    tensors, method, parameters=parameters, base_index=0 if base else None
  )
  return merged.numpy()


def assert_same_weights(
  params: Any, stored: TaskVectors, want: np.ndarray, w_N: list | None = None
) -> None:
  update_RxC, _ = groups.merge_stored(params, stored, w_N)
  unit = np.spacing(np.abs(want).max())
  np.testing.assert_allclose(BASE + update_RxC, want, rtol=0, atol=UNITS * unit)


@sizes
@pytest.mark.parametrize('t', [0.0, 0.3, 0.5, 1.0])
def test_slerp(t: float, size: float):
  stored = experts(2, size)
  tensors = [torch.from_numpy(np.array(x)) for x in stored.experts_NxRxC]
  want = mergekit.merge_tensors(tensors, 'slerp', parameters={'t': t}, base_index=0)
  assert_same_weights(Slerp(t=t), stored, want.numpy())


@sizes
@pytest.mark.parametrize('on', ['weights', 'task_vectors'])
@pytest.mark.parametrize('flatten', [True, False])
def test_nuslerp(on: str, flatten: bool, size: float):
  stored, base, w_N = experts(2, size), on == 'task_vectors', [3.0, 1.0]
  want = rival('nuslerp', stored, base, weight=w_N, nuslerp_flatten=flatten)
  assert_same_weights(NuSlerp(on=on, flatten=flatten), stored, want, w_N)


@sizes
@pytest.mark.parametrize('n', [2, 3, 5])
def test_multislerp(n: int, size: float):
  stored, w_N = experts(n, size), [float(i + 1) for i in range(n)]
  want = rival('multislerp', stored, True, weight=w_N)
  assert_same_weights(MultiSlerp(), stored, want, w_N)


@sizes
@pytest.mark.parametrize('n', [2, 3, 5])
def test_karcher(n: int, size: float):
  stored = experts(n, size)
  want = rival('karcher', stored, False)
  assert_same_weights(Karcher(), stored, want)


# Not smaller: mergekit raises products of norms below 1e-6, so that rows of small
# updates lose their cosine.
@pytest.mark.parametrize('size', [1.0, 0.1])
@pytest.mark.parametrize('filter_wise', [False, True])
@pytest.mark.parametrize('n', [2, 3, 5])
def test_model_stock(n: int, filter_wise: bool, size: float):
  stored = experts(n, size, likeness=2.0)
  want = rival('model_stock', stored, True, filter_wise=filter_wise)
  assert_same_weights(ModelStock(filter_wise=filter_wise), stored, want)
