"""RAM of a whole model in float64, mode by mode from the description of its code."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Model = Mapping[str, Sequence[np.ndarray]]  # tensor name -> updates of the experts


def changed(deltas: Sequence[np.ndarray], threshold: float) -> np.ndarray:
  """Which entries each expert changed: by more than the threshold as float32 has it."""
  return np.stack([np.abs(d) > float(np.float32(threshold)) for d in deltas])


def counts(
  model: Model, threshold: float, copies: Mapping[str, int]
) -> tuple[list[int], list[int]]:
  """Per expert: entries changed, and of these the ones that another changed too."""
  n = len(next(iter(model.values())))
  total, shared = [0] * n, [0] * n
  for name, deltas in model.items():
    masks = changed(deltas, threshold)
    for i in range(n):
      total[i] += copies.get(name, 1) * int(masks[i].sum())
      both = masks[i] & (masks.sum(0) >= 2)
      shared[i] += copies.get(name, 1) * int(both.sum())
  return total, shared


def unique_scale(total: int, shared: int, mode: str, rescale: float) -> float:
  """lambda of one expert."""
  if mode not in ('arm-r', 'arm-r-v2') or total == 0:
    return 1.0
  among = total if mode == 'arm-r' else total - shared
  ratio = shared / among if among else 1.0
  return 1.0 + (max(rescale, 1.0) - 1.0) * min(1.0, ratio)


def ram(
  model: Model,
  *,
  mode: str = 'arm-r-v2',
  rescale: float = 1.05,
  threshold: float = 1e-5,
  target: int = 1,
  copies: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
  """The update of every tensor."""
  total, shared = counts(model, threshold, copies or {})
  scale = [
    unique_scale(a, b, mode, rescale) for a, b in zip(total, shared, strict=True)
  ]
  return {
    name: _merge(
      [np.asarray(d, np.float64) for d in deltas], mode, scale, threshold, target
    )
    for name, deltas in model.items()
  }


def _merge(
  deltas: list[np.ndarray],
  mode: str,
  scale: list[float],
  threshold: float,
  target: int,
) -> np.ndarray:
  masks = changed(deltas, threshold)
  out = np.zeros_like(deltas[0])
  for at in np.ndindex(out.shape):
    who = [i for i in range(len(deltas)) if masks[i][at]]
    if mode == 'arm-unique':
      out[at] = deltas[target][at] / 3 if who == [target] else 0.0
    elif len(who) == 1:
      out[at] = scale[who[0]] * deltas[who[0]][at]
    elif who:
      out[at] = math.fsum(deltas[i][at] for i in who) / len(who)
  if mode == 'arm-ties':
    overwrite_shared(out, deltas, masks)
  return out


def overwrite_shared(
  out: np.ndarray, deltas: list[np.ndarray], masks: np.ndarray
) -> None:
  """arm-ties on the entries that two or more experts changed."""
  where = masks.sum(0) >= 2
  values = [np.where(m, d, 0.0)[where] for m, d in zip(masks, deltas, strict=True)]
  d = int(where.sum())
  for v in values:
    k = math.floor(0.9 * d)
    if k:
      v[np.abs(v) < np.sort(np.abs(v))[k - 1]] = 0.0
  elected = np.zeros(d)
  for at in range(d):
    entry = [v[at] for v in values]
    balance = sum(x for x in entry if x > 0) - sum(-x for x in entry if x < 0)
    agreeing = [x for x in entry if x * balance > 0]
    elected[at] = sum(agreeing) / len(agreeing) if agreeing else 0.0
  out[where] = elected
