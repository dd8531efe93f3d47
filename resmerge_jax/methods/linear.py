"""Weighted averages of the experts' weights: model soups and their relatives.

M = sum w_i W_i / sum w_i. Wortsman et al. 2022, arXiv 2203.05482, Sec. 2. Known under other
names:

* uniform soup: all weights equal, M = sum W_i / N;
* rewarded soups (Rame et al. 2023, arXiv 2306.04488, Sec. 2.2): the points of the simplex
  w_i >= 0, sum w_i = 1, one per preference among the experts' rewards. The authors' code
  for LLaMA averages LoRA factors A and B, which is not the average of their products;
  here weights are averaged;
* SALSA (Chegini et al. 2024, arXiv 2411.01798): the reference of the KL term is the
  midpoint of two models after supervised fine-tuning, weights 0.5 and 0.5.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.task_vectors import Products, TaskVectors, widen
from resmerge_jax.methods.base import (
  Context,
  Dense,
  Method,
  Stats,
  Update,
  apply_update,
  check_params,
  combination,
)
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class Linear:
  """`weights`: w_i, one per expert, times those of the run; None: those of the run alone.

  `normalize`: divide by sum w_i. Without it, M = sum w_i W_i whatever they sum to.
  """

  weights: tuple[float, ...] | None = None
  normalize: bool = True

  def __post_init__(self) -> None:
    if self.weights is None:
      return
    if isinstance(self.weights, list):  # as a configuration file gives them
      object.__setattr__(self, 'weights', tuple(self.weights))
    numbers = isinstance(self.weights, tuple) and all(map(_is_number, self.weights))
    check_params(
      'linear', self, weights=(numbers, 'finite numbers, one per expert, or None')
    )
    check_params(
      'linear',
      self,
      weights=(
        not self.normalize or math.fsum(self.weights) != 0,
        'a sum other than 0, which normalize divides by',
      ),
    )


def merge(
  delta_NxRxC: TaskVectors | Products,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: Linear,
) -> tuple[Update, Stats]:
  """sum_i w_i D_i if the weights sum to one, else plus (sum_i w_i - 1) W_0."""
  weights_N = _weights(context, params)
  total = weights_N.sum()
  if params.normalize:  # total: 0 where no expert has these rows
    safe = jnp.where(total == 0, 1.0, total)
    a_N = jnp.where(total == 0, 0.0, weights_N / safe)
    return combination(a_N, delta_NxRxC), {}
  update_RxC = apply_update(combination(weights_N, delta_NxRxC), delta_NxRxC)
  return Dense(update_RxC + (total - 1) * widen(delta_NxRxC.base_RxC)), {}


def _weights(context: Context, params: Linear) -> jax.Array:
  if params.weights is None:
    return context.weights_N
  return jnp.asarray(params.weights, jnp.float32) * context.weights_N


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)


def _expects(params: Linear, n: int) -> str | None:
  if params.weights is None or len(params.weights) == n:
    return None
  return f'{len(params.weights)}, as many as linear.weights'


METHOD = Method(
  name='linear',
  source='Wortsman et al. 2022, arXiv 2203.05482',
  params=Linear,
  merge=merge,
  terms=lambda params, n, k: 0 if params.normalize else None,  # noqa: ARG005
  scratch=0,
  on_factors=True,
  takes_weights=True,
  whole_matrix=lambda params: False,  # noqa: ARG005
  expects=_expects,
)
