"""Means of N experts on a sphere: multislerp and karcher, as mergekit has them.

Both are combinations of the experts whose coefficients follow from one Gram matrix.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass, gram, row_sums
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.sphere import COLLINEAR, cosines, norms
from resmerge_jax.linalg.task_vectors import TaskVectors, widen
from resmerge_jax.methods.base import (
  Context,
  Dense,
  LowRank,
  Method,
  Stats,
  Update,
  check_params,
  combination,
)
from resmerge_jax.types import Family

CANCELS = 0.05  # share of a squared sum below which the Gram matrix loses digits
CANCELLED = 1e-6  # |sum of unit vectors| that float32 leaves of a sum of zero
MAX_ITER = 1000
ROUNDING = 5e-7  # of sums of N float32 coefficients around 1


@dataclasses.dataclass(frozen=True)
class MultiSlerp:
  """No parameters beside the experts' weights, which are divided by their sum."""


@dataclasses.dataclass(frozen=True)
class Karcher:
  """`max_iter` steps at most, fewer once a step is shorter than `tol` (radians)."""

  max_iter: int = 10
  tol: float = 1e-5

  def __post_init__(self) -> None:
    check_params(
      'karcher',
      self,
      max_iter=(0 <= self.max_iter <= MAX_ITER, f'0 to {MAX_ITER}'),
      tol=(0 <= self.tol < math.inf, 'a finite number, 0 or more'),
    )


def multislerp(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: MultiSlerp,  # noqa: ARG001
) -> tuple[LowRank, Stats]:
  """The weighted mean direction of the task vectors, times their weighted mean norm.

  mergekit projects unit vectors u_i to the plane tangent at m = sum w_i u_i, averages
  there with the same w_i and maps back. That average is m less its part along m, zero:
  the mean direction is all there is. Where the u_i cancel there is no direction; the
  merge is then linear (in mergekit for N = 2, an error for more).
  """
  total = (
    context.weights_N.sum()
  )  # 0 for rows of a padded vocabulary that no expert has
  weight_N = jnp.where(
    total == 0, 0.0, context.weights_N / jnp.where(total == 0, 1, total)
  )
  if len(delta_NxRxC) == 1:
    return combination(weight_N, delta_NxRxC), {'branch': jnp.int32(1)}
  gram_NxN = gram(delta_NxRxC)
  norm_N = norms(gram_NxN)
  unit_N = jnp.where(norm_N > 0, weight_N / jnp.where(norm_N > 0, norm_N, 1.0), 0.0)
  length = _norm_of_sum(unit_N, gram_NxN, delta_NxRxC)
  linear = length <= CANCELLED * jnp.abs(weight_N).sum()
  mean_norm = (weight_N * norm_N).sum()
  direction_N = unit_N * (mean_norm / jnp.where(linear, 1.0, length))
  a_N = jnp.where(linear, weight_N, direction_N)
  stats = {'coherence': length, 'branch': linear.astype(jnp.int32)}
  return combination(a_N, delta_NxRxC), stats


def _norm_of_sum(
  unit_N: jax.Array, gram_NxN: jax.Array, delta_NxRxC: TaskVectors
) -> jax.Array:
  """||sum_i unit_i D_i||: from the Gram matrix unless terms cancel in it."""
  scaled_NxN = unit_N[:, None] * gram_NxN * unit_N[None, :]
  square = scaled_NxN.sum(1).sum()

  def summed_first() -> jax.Array:
    stored, c_N = another_pass(delta_NxRxC, unit_N)
    sum_RxC = sum((c_N[i] * stored[i] for i in range(len(stored))), jnp.float32(0))
    # Two operands, or XLA takes one reduction over both axes, which is inexact.
    up_R, down_R = row_sums(
      [jnp.maximum(sum_RxC, 0) ** 2, jnp.minimum(sum_RxC, 0) ** 2]
    )
    return jnp.sqrt((up_R + down_R).sum())

  cancels = square < CANCELS * norms(scaled_NxN).sum() ** 2
  return jax.lax.cond(cancels, summed_first, lambda: jnp.sqrt(square))


def karcher(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: Karcher,
) -> tuple[Update, Stats]:
  """The Riemannian mean of the directions of the W_i, times their mean norm.

  Experts of norm 0 have no direction, but count in the mean norm (mergekit leaves out
  norms up to `tol`). Where directions cancel the search starts at the first of them.
  """
  n = len(delta_NxRxC)
  if n == 1:
    return combination(jnp.ones(1), delta_NxRxC), {'branch': jnp.int32(0)}
  gram_NxN = gram(delta_NxRxC.weights())
  norm_N = norms(gram_NxN)
  c_N, cancelled = _riemannian_mean(cosines(gram_NxN), norm_N > 0, params)
  a_N = norm_N.mean() * c_N / jnp.where(norm_N > 0, norm_N, 1.0)
  # sum a_i W_i - W_0 = sum a_i D_i + (sum a_i - 1) W_0
  excess = a_N.sum() - 1
  excess = jnp.where(jnp.abs(excess) < ROUNDING, 0.0, excess)
  delta_NxRxC, a_N, excess = another_pass(delta_NxRxC, a_N, excess)
  update_RxC = excess * widen(delta_NxRxC.base_RxC)
  for i in range(n):
    update_RxC += a_N[i] * delta_NxRxC[i]
  return Dense(update_RxC), {'a': a_N, 'branch': cancelled.astype(jnp.int32)}


def _riemannian_mean(
  cos_NxN: jax.Array, exists_N: jax.Array, params: Karcher
) -> tuple[jax.Array, jax.Array]:
  """Coefficients over unit vectors of their Karcher mean; whether their sum cancels.

  Each step goes along the mean of the logarithms of the vectors. An opposite vector
  has none and is left out of that step.
  """
  alpha_N = exists_N / jnp.maximum(exists_N.sum(), 1)

  def norm(x_N: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum((x_N[:, None] * cos_NxN * x_N).sum(1).sum(), 0.0))

  def unit(x_N: jax.Array) -> jax.Array:
    return x_N / jnp.where(norm(x_N) > 0, norm(x_N), 1.0)

  def step(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    c_N, done = state
    dot_N = jnp.clip((c_N[:, None] * cos_NxN).sum(0), -1.0, 1.0)
    curved_N = 1 - dot_N * dot_N > COLLINEAR
    angle_N = jnp.arccos(jnp.where(curved_N, dot_N, 0.0))
    log_N = jnp.where(curved_N, angle_N / jnp.sin(angle_N), dot_N > 0) * alpha_N
    tangent_N = log_N - (log_N * dot_N).sum() * c_N
    angle = norm(tangent_N)
    done |= angle < params.tol
    sinc = jnp.where(angle > 0, jnp.sin(angle) / jnp.where(angle > 0, angle, 1.0), 1.0)
    moved_N = unit(jnp.cos(angle) * c_N + sinc * tangent_N)
    return jnp.where(done, c_N, moved_N), done

  cancelled = (norm(alpha_N) ** 2 < COLLINEAR) & exists_N.any()
  first_N = (jnp.arange(len(exists_N)) == jnp.argmax(exists_N)).astype(jnp.float32)
  start_N = jnp.where(cancelled, first_N, unit(alpha_N))
  done = jnp.bool_(False)
  c_N, _ = jax.lax.fori_loop(0, params.max_iter, step, (start_N, done))
  return c_N, cancelled


MULTISLERP = Method(
  name='multislerp',
  source='Goddard 2025, goddard.blog/posts/multislerp-wow-what-a-cool-idea',
  params=MultiSlerp,
  merge=multislerp,
  terms=lambda params, n, k: 0,  # noqa: ARG005
  scratch=0,
  branches=('mean direction', 'linear'),
  takes_weights=True,
)
KARCHER = Method(
  name='karcher',
  source='arXiv 2603.04972; as in mergekit 0.1.5',
  params=Karcher,
  merge=karcher,
  terms=lambda params, n, k: 0 if n == 1 else None,  # noqa: ARG005
  scratch=0,
  branches=('mean direction', 'cancelled'),
)
