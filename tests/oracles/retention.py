"""Retention in float64: every face of the box is tried, and the lowest point taken."""

import itertools
from collections.abc import Sequence

import numpy as np


def lowest_in_box(A: np.ndarray, c: np.ndarray, most: np.ndarray) -> np.ndarray:
  """argmin of 1/2 x^T A x - c^T x over 0 <= x_i <= most_i; 3^N faces."""
  lowest, best = np.inf, np.zeros_like(c)
  for face in itertools.product(('at 0', 'at most', 'free'), repeat=len(c)):
    free = [i for i, place in enumerate(face) if place == 'free']
    x = np.where(np.array(face) == 'at most', most, 0.0)
    if free:
      slope = A @ x - c
      x[free] = np.linalg.solve(A[np.ix_(free, free)], -slope[free])
    if (x < 0).any() or (x > most).any():
      continue
    value = x @ A @ x / 2 - c @ x
    if value < lowest:
      lowest, best = value, x
  return best


def retention(
  deltas: Sequence[np.ndarray], tau: float = 0.4, *, rescale: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """U of vectors of any shape, and a."""
  D = [np.asarray(d, np.float64).ravel() for d in deltas]
  G = np.array([[x @ y for y in D] for x in D])
  there = [i for i in range(len(D)) if G[i, i] > 0]
  G = G[np.ix_(there, there)]
  own = np.diag(G)
  a = np.zeros(len(D))
  a[there] = lowest_in_box(G + tau * np.diag(own), own, np.ones(len(there)))
  U = sum(x * y for x, y in zip(a, D, strict=True)) * ((1 + tau) if rescale else 1)
  return U.reshape(np.shape(deltas[0])), a
