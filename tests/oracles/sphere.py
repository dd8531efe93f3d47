"""Interpolation on a sphere in float64, on the vectors themselves.

Arguments are arrays of any shape, taken as one vector. Results are merged vectors, in
the space of the arguments: weights, or task vectors.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

norm = np.linalg.norm
Vectors = Sequence[np.ndarray]


def flat(vectors: Vectors) -> list[np.ndarray]:
  return [np.asarray(v, np.float64).ravel() for v in vectors]


def cos(x: np.ndarray, y: np.ndarray) -> float:
  """0 if a vector is zero."""
  if not x.any() or not y.any():
    return 0.0
  return float(np.clip((x / norm(x)) @ (y / norm(y)), -1, 1))


def slerp(
  vectors: Vectors, t: float, *, straight: float = 1.0, resolution: float = 0.0
) -> np.ndarray:
  """Linear where |cos| > `straight` or sin^2 <= `resolution`."""
  x, y = flat(vectors)
  c = cos(x, y)
  if abs(c) > straight or 1 - c * c <= resolution:
    merged = (1 - t) * x + t * y
  else:
    angle = math.acos(c)
    merged = (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)
  return merged.reshape(np.shape(vectors[0]))


def multislerp(vectors: Vectors, weights: Sequence[float]) -> np.ndarray:
  """With the tangent plane and the way back, which `resmerge_jax` knows to be void."""
  x = np.stack(flat(vectors))
  w = np.asarray(weights, np.float64) / np.sum(weights)
  sizes = norm(x, axis=1)
  units = np.stack([v / s if s else v for v, s in zip(x, sizes, strict=True)])
  mean = w @ units
  if norm(mean) < 1e-8:
    return (w @ x).reshape(np.shape(vectors[0]))
  mean /= norm(mean)
  tangent = w @ (units - np.outer(units @ mean, mean))
  length = norm(tangent)
  point = math.cos(length) * mean
  if length:
    point += math.sin(length) / length * tangent
  return (w @ sizes * point).reshape(np.shape(vectors[0]))


def karcher(vectors: Vectors, *, steps: int = 10) -> np.ndarray:
  """Uniform weights. Directions must not cancel."""
  x = flat(vectors)
  units = [v / norm(v) for v in x if v.any()]
  if not units:
    return np.zeros(np.shape(vectors[0]))
  mean = np.mean(units, axis=0)
  mean /= norm(mean)
  for _ in range(steps):
    step = np.zeros_like(mean)
    for u in units:
      part = u - (u @ mean) * mean
      if norm(part):  # the logarithm of u at the mean
        step += math.atan2(norm(part), u @ mean) * part / norm(part) / len(units)
    if not norm(step):
      break
    mean = math.cos(norm(step)) * mean + math.sin(norm(step)) * step / norm(step)
    mean /= norm(mean)
  return (np.mean([norm(v) for v in x]) * mean).reshape(np.shape(vectors[0]))


def model_stock(deltas: Vectors) -> np.ndarray:
  """Of one tensor, or of one row."""
  x = flat(deltas)
  n = len(x)
  cosines = [cos(a, b) for a, b in itertools.combinations(x, 2)]
  c = float(np.mean(cosines)) if cosines else 1.0
  return (n * c / (1 + (n - 1) * c) * np.mean(x, axis=0)).reshape(np.shape(deltas[0]))


def warp(
  model: Mapping[str, Vectors], groups: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
  """The m-th expert joins at 1 / m, one angle for all tensors of a group."""
  merged = {}
  for names in groups:
    joined = [
      np.concatenate(flat([model[name][i] for name in names]))
      for i in range(len(model[names[0]]))
    ]
    out = joined[0]
    for m, vector in enumerate(joined[1:], 2):
      if not out.any() or not vector.any():  # no angle
        out = (1 - 1 / m) * out + vector / m
      else:
        out = slerp([out, vector], 1 / m, resolution=1e-6)
    shapes = [np.shape(model[name][0]) for name in names]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    for name, part, shape in zip(names, np.split(out, ends), shapes, strict=True):
      merged[name] = part.reshape(shape)
  return merged
