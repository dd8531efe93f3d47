"""Breadcrumbs, SCE, NearSwap and DELLA of one tensor in float64, entry by entry."""

import math
from collections.abc import Sequence

import numpy as np

from tests.oracles.dare import rescaled
from tests.oracles.ties import elected, first_largest

Arrays = Sequence[np.ndarray]


def breadcrumbs(
  deltas: Arrays,
  *,
  density: float,
  gamma: float,
  elect: bool,
  weights: Sequence[float],
) -> np.ndarray:
  """Without the int(gamma n) largest, then the int(density n) largest of the rest."""
  n = deltas[0].size
  stays = int(density * n) if density < 1 else n
  dropped_top = min(int(gamma * n), n - stays)
  left = []
  for x in deltas:
    mask = first_largest(x, dropped_top + stays) & ~first_largest(x, dropped_top)
    left.append(np.where(mask, x, 0.0))
  return _summed(left, elect=elect, weights=weights)


def della(
  deltas: Arrays, masks: Arrays, *, elect: bool, weights: Sequence[float]
) -> np.ndarray:
  """Of these masks: rescaled as mergekit's DARE, summed or averaged by sign."""
  left = rescaled({'x': deltas}, {'x': masks}, flavour='mergekit', density=0.5)['x']
  return _summed(left, elect=elect, weights=weights, reduce='mean')


def chance(x: np.ndarray, density: float, epsilon: float) -> np.ndarray:
  """DELLA's probability of each entry to stay, by its rank in its row."""
  out = np.zeros(x.shape)
  for r, row in enumerate(x):
    order = sorted(range(len(row)), key=lambda c: (abs(row[c]), c))
    for rank, c in enumerate(order):
      out[r, c] = density - epsilon + 2 * epsilon * rank / (len(row) - 1)
  return out


def sce(deltas: Arrays, *, select: float) -> np.ndarray:
  """Select by variance, weigh by mean square, erase minority signs."""
  stacked = np.stack(deltas).astype(np.float64)
  variance = stacked.var(0)
  differ = (stacked != stacked[0]).any(0).sum()
  mask = first_largest(variance, int(select * differ)) | (select == 1)
  kept = [np.where(mask, x, 0.0) for x in stacked]
  squares = [math.fsum((x**2).ravel()) for x in kept]
  weights = [s / (sum(squares) or 1.0) for s in squares]
  out = np.zeros(variance.shape)
  for place in np.ndindex(out.shape):
    sign = 1 if math.fsum(x[place] for x in kept) >= 0 else -1
    agree = [
      (w, x[place]) for w, x in zip(weights, kept, strict=True) if sign * x[place] > 0
    ]
    if agree:
      out[place] = sum(w * x for w, x in agree) / sum(w for w, _ in agree)
  return out


def _summed(
  deltas: Arrays, *, elect: bool, weights: Sequence[float], reduce: str = 'sum'
) -> np.ndarray:
  if not elect:
    return sum(w * x for w, x in zip(weights, deltas, strict=True))
  one = {'x': np.stack(deltas)}
  return elected(one, flavour='mergekit', scale=1.0, reduce=reduce, weights=weights)[
    'x'
  ]
