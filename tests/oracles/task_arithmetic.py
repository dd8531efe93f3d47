"""Task arithmetic in float64."""

from collections.abc import Sequence

import numpy as np


def task_arithmetic(
  deltas: Sequence[np.ndarray],
  *,
  reduce: str = 'mean',
  scale: float = 1.0,
  weights: Sequence[float] | None = None,
) -> np.ndarray:
  """scale * sum_i w_i D_i, divided by sum_i w_i if `reduce` is 'mean'."""
  weights_N = np.ones(len(deltas)) if weights is None else np.asarray(weights, float)
  total = np.einsum('n,n...->...', weights_N, np.asarray(deltas, np.float64))
  match reduce:
    case 'sum':
      return scale * total
    case 'mean':
      return scale * total / weights_N.sum()
  raise ValueError(reduce)
