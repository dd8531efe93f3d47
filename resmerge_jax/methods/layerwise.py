"""Post-processors that scale an update by one number: LITI, LiNeS, HMA."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.gram import sums
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import (
  Context,
  Findings,
  Post,
  Scan,
  Stats,
  TensorFacts,
  Totals,
  Update,
  apply_update,
  check_params,
  scaled,
)


@dataclasses.dataclass(frozen=True)
class Liti:
  """W_0 + eta U. `eta`: 0 is the base, 1 the merge, more extrapolates."""

  eta: float = 1.0

  def __post_init__(self) -> None:
    expected = 'a finite number, 0 or more'
    check_params('liti', self, eta=(0 <= self.eta < math.inf, expected))


@dataclasses.dataclass(frozen=True)
class Lines:
  """lambda_l = alpha + beta l / (L - 1), l = 0 .. L - 1.

  `alpha`: scale of the first layer, and of all outside the layers. Unset: that of several
  tasks, ||sum_i D_i||_1 / (N ||U||_1) over the whole model, found in one more pass.
  `beta`: what the last layer gets on top of it.

  The paper tunes beta on validation data and has no default. For a single task it tunes
  alpha and takes beta = 1 - alpha.
  """

  alpha: float | None = None
  beta: float = math.nan

  def __post_init__(self) -> None:
    expected = 'a finite number, 0 or more'
    check_params(
      'lines',
      self,
      alpha=(self.alpha is None or 0 <= self.alpha < math.inf, expected),
      beta=(0 <= self.beta < math.inf, f'{expected} (there is no default)'),
    )


@dataclasses.dataclass(frozen=True)
class Hma:
  """`base_weight` of each of K equal blocks of consecutive layers; must be given.

  It weighs the base, as in the authors' scripts: 0 keeps the merge. (In the paper's
  formula alpha weighs the other model.) The paper takes K = 3.
  """

  base_weight: tuple[float, ...] = ()

  def __post_init__(self) -> None:
    weights = self.base_weight
    is_list = isinstance(weights, list | tuple)
    if is_list:
      object.__setattr__(self, 'base_weight', tuple(weights))
    right = is_list and len(weights) > 0 and all(_is_share(x) for x in weights)
    expected = 'one number from 0 to 1 per block (there is no default)'
    check_params('hma', self, base_weight=(right, expected))


def _is_share(x: object) -> bool:
  return isinstance(x, int | float) and 0 <= x <= 1


def liti(
  update: Update,
  delta_NxRxC: TaskVectors,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  params: Liti,
) -> tuple[Update, Stats]:
  """(1 - eta) W_0 + eta (W_0 + U), the third stage of WARP."""
  return scaled(update, params.eta), {'eta': jnp.float32(params.eta)}


def lines(
  update: Update,
  delta_NxRxC: TaskVectors,  # noqa: ARG001
  *,
  context: Context,
  params: Lines,
) -> tuple[Update, Stats]:
  """lambda_l U. Outside the layers alpha, the least; a single layer is the last one."""
  layer, n_layers = context.layer, context.n_layers
  depth = jnp.where(n_layers > 1, layer / jnp.maximum(n_layers - 1, 1), 1.0)
  depth = jnp.where(layer < 0, 0.0, depth)
  alpha = context.found['lines_alpha'] if params.alpha is None else params.alpha
  factor = jnp.float32(alpha) + jnp.float32(params.beta) * depth
  return scaled(update, factor), {'factor': factor}


def measure_l1(
  update: Update,
  delta_NxRxC: TaskVectors,
  *,
  params: Lines,  # noqa: ARG001
) -> dict[str, jax.Array]:
  """||mean_i D_i||_1 and ||U||_1."""
  n = len(delta_NxRxC)
  mean_RxC = sum(delta_NxRxC[i] for i in range(n)) / n
  update_RxC = apply_update(update, delta_NxRxC)
  mean, merged = sums([jnp.abs(mean_RxC), jnp.abs(update_RxC)])
  return {'mean': mean, 'merged': merged}


def alpha_of_several_tasks(
  totals: Totals,
  facts: Mapping[str, TensorFacts],  # noqa: ARG001
  params: Lines,  # noqa: ARG001
  before: Findings,  # noqa: ARG001
) -> Findings:
  """Of sums over all floating tensors; 0 where the merge changed nothing."""
  mean, merged = totals['']['mean'], totals['']['merged']
  alpha = mean / merged if merged > 0 else 0.0
  return {'': {'lines_alpha': np.asarray(alpha, np.float32)}}


def hma(
  update: Update,
  delta_NxRxC: TaskVectors,  # noqa: ARG001
  *,
  context: Context,
  params: Hma,
) -> tuple[Update, Stats]:
  """(1 - base weight of the block) U: the base mixed back in.

  Block k of K begins at layer floor(k L / K): 26 layers in 3 are 8, 9 and 9. Tensors
  outside the layers get the mean of the base weights. (The authors' script takes the first
  block's for embeddings, the overall one for final norm and head.)
  """
  base_weight = _base_weight(context, params)
  return scaled(update, 1 - base_weight), {'base_weight': base_weight}


def _base_weight(context: Context, params: Hma) -> jax.Array:
  weights_K = jnp.asarray(params.base_weight, jnp.float32)
  k = len(params.base_weight)
  starts_K = jnp.arange(k) * context.n_layers // k
  block = (context.layer >= starts_K).sum() - 1  # the last that has begun
  inside = weights_K[jnp.maximum(block, 0)]
  return jnp.where(context.layer < 0, weights_K.mean(), inside)


LITI = Post(
  name='liti',
  source='Ramé et al. 2024, arXiv 2406.16768',
  params=Liti,
  apply=liti,
  keeps_form=True,
)
LINES = Post(
  name='lines',
  source='Wang et al. 2024, arXiv 2410.17146',
  params=Lines,
  apply=lines,
  scans=lambda params: (
    ()
    if params.alpha is not None
    else (Scan(measure_l1, alpha_of_several_tasks, True),)
  ),
  keeps_form=True,
)
HMA = Post(
  name='hma',
  source='Lin et al. 2023, arXiv 2309.06256',
  params=Hma,
  apply=hma,
  keeps_form=True,
)
