"""Interpolation on a sphere, in coefficients: angles from Gram matrices, no vectors.

Functions take JAX arrays or NumPy arrays (host sums in float64) and give the same kind.
"""

from types import ModuleType
from typing import Any, NamedTuple

# sin^2 of an angle below which float32 Gram matrices leave no digit of it. Spherical and
# linear weights then differ by less than 2e-7, unless the angle is near pi.
COLLINEAR = 1e-6
# What an interpolation came out as; 'opposite': linear, as vectors near pi apart have
# no arc between them.
BRANCHES = ('slerp', 'lerp', 'opposite')


class Arc(NamedTuple):
  """Weights of slerp between two vectors that are not normalised."""

  first: Any  # sin((1 - t) angle) / sin(angle)
  second: Any  # sin(t angle) / sin(angle)
  excess: Any  # first + second - 1, without the rounding of that sum


def namespace(x: Any) -> ModuleType:
  """jax.numpy or numpy, whichever `x` belongs to."""
  return x.__array_namespace__()


def norms(gram_NxN: Any) -> Any:
  """||X_i||."""
  xp = namespace(gram_NxN)
  return xp.sqrt(xp.maximum(xp.diagonal(gram_NxN), 0.0))


def cosine(product: Any, norm_x: Any, norm_y: Any) -> Any:
  """<x, y> / (||x|| ||y||) within [-1, 1]; 0 where a vector is zero. Any shape."""
  xp = namespace(product)
  exists = (norm_x > 0) & (norm_y > 0)
  # One norm at a time: their product may leave the range of float32.
  cos = product / xp.where(exists, norm_x, 1.0) / xp.where(exists, norm_y, 1.0)
  return xp.where(exists, xp.clip(cos, -1.0, 1.0), 0.0)


def cosines(gram_NxN: Any) -> Any:
  """cos(X_i, X_j), NxN; 0 for zero vectors."""
  norm_N = norms(gram_NxN)
  return cosine(gram_NxN, norm_N[:, None], norm_N[None, :])


def arc(t: Any, cos: Any, linear: Any) -> Arc:
  """Weights at `t` between vectors of cosine `cos`; 1 - t and t where `linear`."""
  xp = namespace(cos)
  angle = xp.arccos(xp.where(linear, 0.0, cos))
  sin = xp.sin(angle)
  first = xp.where(linear, 1.0 - t, xp.sin((1.0 - t) * angle) / sin)
  second = xp.where(linear, t, xp.sin(t * angle) / sin)
  half = xp.sin((1.0 - t) * angle / 2) * xp.sin(t * angle / 2)
  return Arc(first, second, xp.where(linear, 0.0, 2 * half / xp.cos(angle / 2)))


def branch(cos: Any, linear: Any) -> Any:
  """Index into BRANCHES, int32."""
  xp = namespace(cos)
  return xp.where(linear, xp.where(cos < 0, 2, 1), 0).astype(xp.int32)


def iterated_slerp(gram_NxN: Any) -> tuple[Any, Any, Any]:
  """Slerp of N vectors one after the other: the m-th joins at t = 1 / m.

  Returns:
    Weights of the vectors (N); cosine at each step (N - 1); the largest branch code.
    A step with a zero vector, or with vectors (nearly) parallel or opposite, is linear.
  """
  xp = namespace(gram_NxN)
  n = gram_NxN.shape[0]
  unit_NxN = xp.eye(n, dtype=gram_NxN.dtype)
  norm_N = norms(gram_NxN)
  weight_N, cos_list, branches = unit_NxN[0], [], [xp.zeros((), xp.int32)]
  for m in range(1, n):
    product_N = (weight_N[:, None] * gram_NxN).sum(0)  # <merged so far, X_j>
    norm = xp.sqrt(xp.maximum((product_N * weight_N).sum(), 0.0))
    cos = cosine(product_N[m], norm, norm_N[m])
    linear = (1 - cos * cos <= COLLINEAR) | (norm == 0) | (norm_N[m] == 0)
    step = arc(1 / (m + 1), cos, linear)
    weight_N = step.first * weight_N + step.second * unit_NxN[m]
    cos_list.append(cos)
    branches.append(branch(cos, linear))
  cos_M = xp.stack(cos_list) if cos_list else xp.zeros(0, gram_NxN.dtype)
  return weight_N, cos_M, xp.stack(branches).max()
