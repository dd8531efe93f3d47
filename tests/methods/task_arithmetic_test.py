"""Task arithmetic agrees with float64."""

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.task_arithmetic import METHOD, TaskArithmetic
from tests.methods import groups
from tests.oracles.task_arithmetic import task_arithmetic


@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('reduce', ['mean', 'sum'])
def test_agrees_with_the_oracle(n: int, reduce: str):
  delta_NxRxC = groups.experts(n, 7, 4, 1.0)
  for weights in (None, [1.0, 2.5, 0.0][:n]):
    params = TaskArithmetic(reduce=reduce, scale=0.7)
    update, stats = groups.merge(params, None, delta_NxRxC, None, weights)
    want = task_arithmetic(delta_NxRxC, reduce=reduce, scale=0.7, weights=weights)
    np.testing.assert_allclose(groups.applied(update, delta_NxRxC), want, atol=1e-6)
    assert stats == {}
    assert update.w_T.shape == (0,)


def test_one_expert_with_weight_one_is_returned_exactly():
  delta_NxRxC = groups.experts(1, 7, 4, 1.0)
  update, _ = groups.merge(TaskArithmetic(), None, delta_NxRxC, None)
  np.testing.assert_array_equal(groups.applied(update, delta_NxRxC), delta_NxRxC[0])


def test_rows_may_come_in_blocks():
  assert not METHOD.whole_matrix(METHOD.params())
  delta_NxRxC = groups.experts(3, 8, 4, 1.0)
  params = TaskArithmetic()
  whole, _ = groups.merge(params, None, delta_NxRxC, None)
  parts = [
    groups.applied(groups.merge(params, None, block, None)[0], block)
    for block in (delta_NxRxC[:, :3], delta_NxRxC[:, 3:])
  ]
  np.testing.assert_array_equal(np.vstack(parts), groups.applied(whole, delta_NxRxC))


def test_unknown_reduce():
  with pytest.raises(InputError) as error:
    TaskArithmetic(reduce='median')
  message = "task_arithmetic.reduce: got 'median', expected 'mean' or 'sum'"
  assert str(error.value) == message
