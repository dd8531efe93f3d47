"""TIES in float64, entry by entry, on a whole model: {tensor name: N task vectors}."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Model = Mapping[str, Sequence[np.ndarray]]


def ties(
  model: Model,
  *,
  flavour: str,
  keep: float = 0.2,
  scale: float = 1.0,
  reduce: str = 'mean',
  weights: Sequence[float] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The updates, and per tensor the N masks of the trim."""
  n = len(next(iter(model.values())))
  weights = [1.0] * n if weights is None else list(weights)
  masks: dict[str, np.ndarray] = {}
  if flavour == 'official':
    thresholds = [threshold([model[t][i] for t in model], keep) for i in range(n)]
    for name, xs in model.items():
      masks[name] = np.stack([abs(x) >= t for x, t in zip(xs, thresholds, strict=True)])
  else:
    for name, xs in model.items():
      masks[name] = np.stack(
        [first_largest(x, _count(flavour, keep, x.size)) for x in xs]
      )
  kept = {
    name: np.where(masks[name], np.asarray(model[name], float), 0.0) for name in model
  }
  return elected(
    kept, flavour=flavour, scale=scale, reduce=reduce, weights=weights
  ), masks


def _count(flavour: str, keep: float, size: int) -> int:
  count = int(keep * size)
  return 1 if flavour == 'mergekit' and keep > 0 and count == 0 else count


def threshold(tensors: Sequence[np.ndarray], keep: float) -> float:
  """The k-th smallest magnitude of all tensors together, k = D - int(keep D)."""
  ordered = sorted(abs(float(x)) for tensor in tensors for x in tensor.ravel())
  k = len(ordered) - int(keep * len(ordered))
  return ordered[k - 1] if k else 0.0


def first_largest(x: np.ndarray, count: int) -> np.ndarray:
  """Mask of the `count` largest magnitudes, the first ones where they are equal."""
  places = sorted(range(x.size), key=lambda p: (-abs(float(x.ravel()[p])), p))
  mask = np.zeros(x.size, bool)
  mask[places[:count]] = True
  return mask.reshape(x.shape)


def elected(
  model: Model, *, flavour: str, scale: float, reduce: str, weights: Sequence[float]
) -> dict[str, np.ndarray]:
  """Sign election and disjoint merge of what the trim left."""

  def sign_of(entries: Sequence[float]) -> int:
    voters = entries if flavour == 'peft' else _times(weights, entries)
    total = math.fsum(voters)
    return (total > 0) - (total < 0)

  columns = {name: _columns(xs) for name, xs in model.items()}
  signs = {name: [sign_of(c) for c in cs] for name, cs in columns.items()}
  zero = 1
  if flavour == 'official':
    majority = sum(s for tensor in signs.values() for s in tensor)
    zero = 1 if majority > 0 else -1
  out = {}
  for name, xs in model.items():
    merged = [
      _merged(c, s or zero, flavour, reduce, weights)
      for c, s in zip(columns[name], signs[name], strict=True)
    ]
    out[name] = scale * np.reshape(merged, np.shape(xs)[1:])
  return out


def _merged(
  entries: Sequence[float],
  sign: int,
  flavour: str,
  reduce: str,
  weights: Sequence[float],
) -> float:
  total = by = 0.0
  for w, x in zip(weights, entries, strict=True):
    if sign * (x if flavour == 'peft' else w * x) > 0:
      total += w * x
      by += 1.0 if flavour == 'peft' else w
  return total if reduce == 'sum' else total / (by or 1.0)


def _times(weights: Sequence[float], entries: Sequence[float]) -> list[float]:
  return [w * x for w, x in zip(weights, entries, strict=True)]


def _columns(xs: Sequence[np.ndarray]) -> list[list[float]]:
  return np.stack([np.asarray(x, float).ravel() for x in xs], 1).tolist()
