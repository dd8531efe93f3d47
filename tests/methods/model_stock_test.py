"""Model Stock agrees with float64, per tensor and per row."""

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.model_stock import BRANCHES, METHOD, ModelStock
from tests.methods import groups
from tests.oracles.sphere import model_stock

PER_TENSOR, PER_ROW = ModelStock(), ModelStock(filter_wise=True)


def merged(params: ModelStock, delta_NxRxC: np.ndarray) -> tuple[np.ndarray, dict]:
  return groups.merge_stored(params, groups.task_vectors(delta_NxRxC))


def by_row(delta_NxRxC: np.ndarray) -> np.ndarray:
  return np.stack([model_stock(rows) for rows in delta_NxRxC.transpose(1, 0, 2)])


@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_agrees_with_the_oracle(n: int):
  delta_NxRxC = groups.experts(n, groups.ROWS, groups.COLS, 1.5)
  got, stats = merged(PER_TENSOR, delta_NxRxC)
  np.testing.assert_allclose(got, model_stock(delta_NxRxC), atol=1e-6)
  assert BRANCHES[stats['branch']] == 'stock'
  got, stats = merged(PER_ROW, delta_NxRxC)
  # 1 + (N - 1) cos of a row comes as low as a twentieth: it amplifies rounding.
  np.testing.assert_allclose(got, by_row(delta_NxRxC), atol=1e-5)
  assert stats == {}


@pytest.mark.parametrize('params', [PER_TENSOR, PER_ROW], ids=['tensor', 'row'])
def test_edges(params: ModelStock):
  x_RxC = groups.experts(1, groups.ROWS, groups.COLS, 0.0)[0]
  zero = 0 * x_RxC
  for experts, want, branch in (
    ([x_RxC], x_RxC, 'stock'),
    ([x_RxC, x_RxC, x_RxC], x_RxC, 'stock'),  # all agree: their mean
    ([x_RxC, -x_RxC], zero, 'singular'),
    ([x_RxC, -2 * x_RxC], zero, 'singular'),
    ([x_RxC, zero], zero, 'stock'),  # cosine 0: the base
    ([zero, zero], zero, 'stock'),
  ):
    got, stats = merged(params, np.stack(experts))
    np.testing.assert_allclose(got, want, atol=1e-6)
    if stats:
      assert BRANCHES[stats['branch']] == branch


def test_rows_may_come_in_blocks():
  assert not METHOD.whole_matrix(PER_ROW)
  assert METHOD.whole_matrix(PER_TENSOR)
  delta_NxRxC = groups.experts(3, groups.ROWS, groups.COLS, 1.0)
  parts = [
    merged(PER_ROW, delta_NxRxC[:, rows])[0] for rows in (slice(5), slice(5, None))
  ]
  np.testing.assert_array_equal(np.vstack(parts), merged(PER_ROW, delta_NxRxC)[0])


def test_parameters_out_of_range():
  with pytest.raises(InputError, match='filter_wise: got 1, expected True'):
    ModelStock(filter_wise=1)
