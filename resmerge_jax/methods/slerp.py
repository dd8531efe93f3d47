"""Spherical interpolation between two experts: slerp and nuslerp, as mergekit has them.

With x, y the two weights (or task vectors) and their angle w, the merge is
(sin((1 - t) w) x + sin(t w) y) / sin w; x and y keep their lengths. Weights of experts
of one base are almost parallel, so there it is the mean in all but name.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.gram import another_pass, gram, row_sums
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.sphere import (
  BRANCHES,
  COLLINEAR,
  Arc,
  arc,
  branch,
  cosine,
  cosines,
)
from resmerge_jax.linalg.task_vectors import TaskVectors, widen
from resmerge_jax.methods.base import (
  Context,
  Dense,
  Method,
  Stats,
  Update,
  check_params,
  combination,
)
from resmerge_jax.types import Family

ON = ('weights', 'task_vectors')
STRAIGHT = 0.9995  # |cos| above which mergekit's slerp is linear
NO_WEIGHT = 1e-6  # sum of weights below which mergekit's nuslerp takes the middle


@dataclasses.dataclass(frozen=True)
class Slerp:
  """`t` = 0 is the first expert, 1 the second. `on`: what the angle is between."""

  t: float = 0.5
  on: Literal['weights', 'task_vectors'] = 'weights'

  def __post_init__(self) -> None:
    check_params(
      'slerp',
      self,
      t=(math.isfinite(self.t), 'a finite number'),
      on=(self.on in ON, ' | '.join(ON)),
    )


@dataclasses.dataclass(frozen=True)
class NuSlerp:
  """t = w_2 / (w_1 + w_2). `flatten`: one angle per tensor, else one per row."""

  on: Literal['weights', 'task_vectors'] = 'task_vectors'
  flatten: bool = True

  def __post_init__(self) -> None:
    check_params(
      'nuslerp',
      self,
      on=(self.on in ON, ' | '.join(ON)),
      flatten=(isinstance(self.flatten, bool), 'True | False'),
    )


def slerp(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: Slerp,
) -> tuple[Update, Stats]:
  """Linear where |cos| > 0.9995; a zero vector counts as orthogonal.

  Raises:
    InputError: other than two experts.
  """
  _two(delta_NxRxC, 'slerp')
  cos = cosines(gram(_vectors(delta_NxRxC, params.on)))[0, 1]
  linear = jnp.abs(cos) > STRAIGHT
  weights = arc(params.t, cos, linear)
  stats = {'cos': cos, 'branch': branch(cos, linear)}
  return _between(weights, delta_NxRxC, params.on), stats


def nuslerp(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: NuSlerp,
) -> tuple[Update, Stats]:
  """Linear only where vectors are parallel or opposite to float32.

  Raises:
    InputError: other than two experts.
  """
  _two(delta_NxRxC, 'nuslerp')
  total = context.weights_N.sum()
  none = jnp.abs(total) < NO_WEIGHT
  t = jnp.where(none, 0.5, context.weights_N[1] / jnp.where(none, 1.0, total))
  x, y = vectors = _vectors(delta_NxRxC, params.on)
  if params.flatten:
    cos = cosines(gram(vectors))[0, 1]
  else:
    xx_R, xy_R, yy_R = row_sums([x * x, x * y, y * y])
    cos = cosine(xy_R, jnp.sqrt(xx_R), jnp.sqrt(yy_R))[:, None]
  linear = 1 - cos * cos <= COLLINEAR
  stats = {'cos': cos, 'branch': branch(cos, linear)} if params.flatten else {}
  return _between(arc(t, cos, linear), delta_NxRxC, params.on), stats


def expects(params: Any, n: int) -> str | None:  # noqa: ARG001
  """For a run with another number of experts, before it reads any."""
  return None if n == 2 else 'two (multislerp, karcher and warp take any number)'


def _two(delta_NxRxC: TaskVectors, method: str) -> None:
  n = len(delta_NxRxC)
  if expected := expects(None, n):
    raise InputError(f'{method}: got {n} experts, expected {expected}')


def _vectors(delta_NxRxC: TaskVectors, on: str) -> list[jax.Array]:
  if on == 'task_vectors':
    return [delta_NxRxC[i] for i in range(len(delta_NxRxC))]
  return delta_NxRxC.weights()


def _between(weights: Arc, delta_NxRxC: TaskVectors, on: str) -> Update:
  """What the weights (scalars, or Rx1) make of two experts, less W_0.

  p W_1 + q W_2 - W_0 = p D_1 + q D_2 + (p + q - 1) W_0.
  """
  first, second, excess = weights
  if on == 'task_vectors' and not first.ndim:
    return combination(jnp.stack([first, second]), delta_NxRxC)
  delta_NxRxC, first, second, excess = another_pass(delta_NxRxC, first, second, excess)
  update_RxC = first * delta_NxRxC[0] + second * delta_NxRxC[1]
  if on == 'weights':
    update_RxC += excess * widen(delta_NxRxC.base_RxC)
  return Dense(update_RxC)


def _terms(params: Slerp | NuSlerp, n: int, k: int) -> int | None:  # noqa: ARG001
  by_row = isinstance(params, NuSlerp) and not params.flatten
  return 0 if params.on == 'task_vectors' and not by_row else None


SLERP = Method(
  name='slerp',
  source='Shoemake 1985; as in mergekit 0.1.5',
  params=Slerp,
  merge=slerp,
  terms=_terms,
  scratch=0,
  branches=BRANCHES,
  expects=expects,
)
NUSLERP = Method(
  name='nuslerp',
  source='mergekit 0.1.5',
  params=NuSlerp,
  merge=nuslerp,
  terms=_terms,
  scratch=0,
  branches=BRANCHES,
  expects=expects,
  takes_weights=True,
  whole_matrix=lambda params: params.flatten,
)
