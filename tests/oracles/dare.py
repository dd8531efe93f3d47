"""DARE in float64 for given masks, on a whole model: {tensor name: N task vectors}."""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.oracles.ties import elected, threshold

Model = Mapping[str, Sequence[np.ndarray]]


def rescaled(
  model: Model, masks: Model, *, flavour: str, density: float
) -> dict[str, np.ndarray]:
  """What is left of the task vectors, rescaled."""
  out = {}
  for name, xs in model.items():
    left = [np.where(m, x, 0.0) for m, x in zip(masks[name], xs, strict=True)]
    for i, x in enumerate(xs):
      if flavour == 'mergekit':
        before, after = abs(x.astype(float)).sum(), abs(left[i]).astype(float).sum()
        left[i] = left[i] * (before / after) if after else left[i]
      elif density:
        left[i] = left[i] / density
    out[name] = np.stack(left)
  return out


def dare(
  model: Model,
  masks: Model,
  *,
  flavour: str,
  density: float,
  scale: float = 1.0,
  weights: Sequence[float],
) -> dict[str, np.ndarray]:
  """Weighted sum (mergekit, peft) or average (mergelm) of what is left."""
  out = {}
  for name, xs in rescaled(model, masks, flavour=flavour, density=density).items():
    total = sum(w * x for w, x in zip(weights, xs, strict=True))
    out[name] = scale * (total / sum(weights) if flavour == 'mergelm' else total)
  return out


def dare_ties(
  model: Model,
  masks: Model,
  *,
  flavour: str,
  density: float,
  scale: float = 1.0,
  weights: Sequence[float],
) -> dict[str, np.ndarray]:
  """Election of signs among what is left; `mergelm` trims it to a fifth before."""
  left = rescaled(model, masks, flavour=flavour, density=density)
  if flavour == 'mergelm':
    for i in range(len(weights)):
      least = threshold([xs[i] for xs in left.values()], 0.2)
      for xs in left.values():
        xs[i] = np.where(abs(xs[i]) >= least, xs[i], 0.0)
  return elected(
    left,
    flavour={'mergelm': 'official'}.get(flavour, flavour),
    scale=scale,
    reduce='sum' if flavour == 'mergekit' else 'mean',
    weights=weights,
  )
