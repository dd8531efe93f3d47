"""The k-th smallest magnitude is the one that a sort finds, to the bit."""

import jax
import numpy as np
import pytest

from resmerge_jax.linalg.kth_smallest import counts, kth_smallest

ROWS, COLS = 6, 11


def values(kind: str) -> np.ndarray:
  rng = np.random.default_rng(0)
  x_NxRxC = np.abs(rng.standard_normal((2, ROWS, COLS))).astype(np.float32)
  match kind:
    case 'ties':
      return np.round(x_NxRxC)
    case 'zeros':
      return np.where(x_NxRxC < 1, 0, x_NxRxC)
    case 'wide':
      return np.float32(2.0) ** rng.integers(-149, 127, x_NxRxC.shape)
    case 'left out':
      return np.where(x_NxRxC < 1, np.inf, x_NxRxC)
  return x_NxRxC


@pytest.mark.parametrize('kind', ['general', 'ties', 'zeros', 'wide', 'left out'])
def test_equals_the_sorted(kind: str):
  x_NxRxC = values(kind).astype(np.float32)
  sorted_NxK = np.sort(x_NxRxC.reshape(2, -1), axis=1)
  find = jax.jit(lambda x, k_N: kth_smallest(list, x, k_N))
  most = np.isfinite(sorted_NxK).sum(1)
  for k_N in np.linspace([1, 1], most, 7).astype(np.int32):
    want = [sorted_NxK[n, k - 1] for n, k in enumerate(k_N)]
    got = np.asarray(find(x_NxRxC, k_N))
    np.testing.assert_array_equal(got.view(np.int32), np.array(want).view(np.int32))
  np.testing.assert_array_equal(find(x_NxRxC, np.zeros(2, np.int32)), 0.0)


def test_counts():
  x_NxRxC = values('general')
  got = counts([x > 0.5 for x in x_NxRxC])
  assert got.dtype == np.int32
  assert got.tolist() == [np.count_nonzero(x > 0.5) for x in x_NxRxC]
