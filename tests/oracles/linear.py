"""Weighted averages of weights in float64."""

from collections.abc import Sequence

import numpy as np


def linear(
  experts: Sequence[np.ndarray], weights: Sequence[float], *, normalize: bool = True
) -> np.ndarray:
  """The merged weights: sum_i w_i W_i, divided by sum_i w_i if `normalize`."""
  merged = np.zeros(experts[0].shape)
  for weight, expert in zip(weights, experts, strict=True):
    merged += weight * expert.astype(np.float64)
  return merged / sum(weights) if normalize else merged
