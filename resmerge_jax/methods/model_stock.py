"""Model Stock (Jang et al. 2024, arXiv 2403.19522): how far to go from W_0 to the mean.

With cos the mean cosine between the task vectors of N experts, the merge is
W_0 + t mean_i D_i with t = N cos / (1 + (N - 1) cos).
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import another_pass, gram, row_sums
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.sphere import cosine, cosines
from resmerge_jax.linalg.task_vectors import TaskVectors
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

BRANCHES = ('stock', 'singular')
SINGULAR = 1e-5  # |1 + (N - 1) cos| that is the rounding of float32 cosines


@dataclasses.dataclass(frozen=True)
class ModelStock:
  """`filter_wise`: one t per row, as in the paper's convolutions; else per tensor."""

  filter_wise: bool = False

  def __post_init__(self) -> None:
    check_params(
      'model_stock',
      self,
      filter_wise=(isinstance(self.filter_wise, bool), 'True | False'),
    )


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: ModelStock,
) -> tuple[Update, Stats]:
  """One expert is returned: t = 1. A zero vector has cosine 0 to all others.

  Cosines are free of scale. mergekit raises ||D_i|| ||D_j|| to 1e-6 at least, which rows of
  small updates stay below: their cosine then shrinks, and t with it.
  """
  n = len(delta_NxRxC)
  if not params.filter_wise:
    cos = _mean_of_pairs(cosines(gram(delta_NxRxC)))
    t, singular = _ratio(cos, n)
    stats = {'cos': cos, 't': t, 'branch': singular.astype(jnp.int32)}
    return combination(jnp.broadcast_to(t / n, (n,)), delta_NxRxC), stats
  t_R, _ = _ratio(_mean_of_pairs(_row_cosines(delta_NxRxC)), n)
  delta_NxRxC, t_R = another_pass(delta_NxRxC, t_R)
  total_RxC = sum((delta_NxRxC[i] for i in range(n)), jnp.float32(0))
  return Dense(total_RxC * (t_R / n)[:, None]), {}


def _row_cosines(delta_NxRxC: TaskVectors) -> jax.Array:
  """cos(row r of D_i, row r of D_j), NxNxR."""
  n = len(delta_NxRxC)
  product_list = row_sums(
    [delta_NxRxC[i] * delta_NxRxC[j] for i in range(n) for j in range(n)]
  )
  product_NxNxR = jnp.stack(product_list).reshape(n, n, -1)
  norm_NxR = jnp.sqrt(jnp.stack([product_NxNxR[i, i] for i in range(n)]))
  return cosine(product_NxNxR, norm_NxR[:, None], norm_NxR[None, :])


def _mean_of_pairs(cos_NxNx: jax.Array) -> jax.Array:
  """Mean over i < j of what stands at [i, j]; 0 without a pair."""
  pairs = list(itertools.combinations(range(cos_NxNx.shape[0]), 2))
  zero = jnp.zeros(cos_NxNx.shape[2:])
  return sum((cos_NxNx[pair] for pair in pairs), zero) / max(len(pairs), 1)


def _ratio(cos: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
  """t, and whether it has no value: it is 0 then, as in mergekit."""
  if n == 1:
    return jnp.ones_like(cos), jnp.zeros(cos.shape, bool)
  rest = 1 + (n - 1) * cos
  singular = jnp.abs(rest) < SINGULAR
  return jnp.where(singular, 0.0, n * cos / jnp.where(singular, 1.0, rest)), singular


METHOD = Method(
  name='model_stock',
  source='Jang et al. 2024, arXiv 2403.19522; as in mergekit 0.1.5',
  params=ModelStock,
  merge=merge,
  terms=lambda params, n, k: None if params.filter_wise else 0,  # noqa: ARG005
  scratch=0,
  branches=BRANCHES,
  whole_matrix=lambda params: not params.filter_wise,
)
