"""Averages of weights agree with float64."""

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import apply_update
from resmerge_jax.methods.linear import METHOD, Linear
from tests.methods import groups
from tests.oracles.linear import linear


def merged(
  params: Linear, experts_NxRxC: np.ndarray, base_RxC: np.ndarray, weights=None
):
  delta_NxRxC = TaskVectors(base_RxC, experts_NxRxC)
  context = groups.context(len(experts_NxRxC), weights)
  update, stats = METHOD.merge(
    delta_NxRxC, None, context=context, family=None, params=params
  )
  assert stats == {}
  return base_RxC + np.asarray(apply_update(update, delta_NxRxC))


@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('normalize', [True, False])
def test_agrees_with_the_oracle(n: int, normalize: bool):
  base_RxC = groups.experts(1, 7, 4, 1.0, seed=1)[0]
  experts_NxRxC = base_RxC + groups.experts(n, 7, 4, 1.0)
  given, run = [0.2, -0.5, 1.5][:n], [1.0, 2.0, 0.5][:n]
  for params, weights, w in (
    (Linear(normalize=normalize), None, [1.0] * n),
    (Linear(normalize=normalize), run, run),
    (Linear(tuple(given), normalize), None, given),
    (Linear(given, normalize), run, np.multiply(given, run)),
  ):
    got = merged(params, experts_NxRxC, base_RxC, weights)
    want = linear(experts_NxRxC, w, normalize=normalize)
    # weights of order 1 in float32, times the sum of |w_i| / |sum w_i| < 10
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_weights_that_sum_to_one_leave_the_base_out():
  experts_NxRxC = groups.experts(2, 7, 4, 1.0)
  params = Linear((0.25, 0.75), normalize=False)
  huge_RxC = np.full((7, 4), 1e30, np.float32)
  delta_NxRxC = TaskVectors(huge_RxC, np.stack([huge_RxC] * 2))
  update, _ = METHOD.merge(
    delta_NxRxC, None, context=groups.context(2), family=None, params=params
  )
  np.testing.assert_array_equal(apply_update(update, delta_NxRxC), 0.0)
  plain = merged(params, experts_NxRxC, 0 * experts_NxRxC[0])
  normalized = merged(Linear((1, 3)), experts_NxRxC, 0 * experts_NxRxC[0])
  np.testing.assert_array_equal(plain, normalized)


def test_rows_that_no_expert_has_stay_as_they_are():
  experts_NxRxC = groups.experts(2, 7, 4, 1.0)
  got = merged(Linear(), experts_NxRxC, 0 * experts_NxRxC[0], [0, 0])
  np.testing.assert_array_equal(got, 0.0)


@pytest.mark.parametrize(
  ('weights', 'expected'),
  [
    ((1.0, -1.0), 'a sum other than 0, which normalize divides by'),
    ((1.0, float('nan')), 'finite numbers, one per expert, or None'),
    ('equal', 'finite numbers, one per expert, or None'),
  ],
)
def test_bad_weights(weights, expected: str):
  with pytest.raises(InputError) as error:
    Linear(weights)
  assert f'weights: got {weights!r}, expected {expected}' in str(error.value)


def test_wrong_number_of_weights():
  assert METHOD.expects(Linear((1, 2)), 2) is None
  assert METHOD.expects(Linear(), 3) is None
  assert METHOD.expects(Linear((1, 2)), 3) == '2, as many as linear.weights'
