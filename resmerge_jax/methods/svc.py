"""SVC (Li et al. 2026, arXiv 2602.05536): singular value calibration of an update.

Along a left singular vector u_r of the merged update U, an expert's share is
a_r^i = u_r^T D_i and the update's a_r = u_r^T U. Where experts overlap a_r repeats what
each of them says; sigma_r is divided by how often, on average.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.short_side import Blocks, mirrored
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import (
  Context,
  Dense,
  Post,
  Stats,
  Update,
  apply_update,
  check_params,
)

SMALLEST_SQUARE = 1e-12  # of ||a_r^i||, as in the authors' code; not free of scale
FOUND = 3e-8  # sigma / sigma_1 above which the Gram matrix sees a direction


@dataclasses.dataclass(frozen=True)
class Svc:
  """`alpha` bounds the share from below, and so gamma by 1 / alpha.

  1 never amplifies a sum of experts; on a mean of N, 1 / N does the same.
  """

  alpha: float = 1.0

  def __post_init__(self) -> None:
    alpha = (0 < self.alpha < math.inf, 'a finite number above 0')
    check_params('svc', self, alpha=alpha)


def apply(
  update: Update,
  delta_NxRxC: TaskVectors,
  *,
  context: Context,  # noqa: ARG001
  params: Svc,
) -> tuple[Update, Stats]:
  """sum_r gamma_r sigma_r u_r v_r^T. Vectors (one row) stay as they are."""
  n = len(delta_NxRxC)
  if delta_NxRxC.shape[0] == 1:
    return update, {}
  update_RxC = apply_update(update, delta_NxRxC).astype(jnp.float32)
  blocks = Blocks(delta_NxRxC, more=(update_RxC,))

  def terms(x_MxBxS: jax.Array) -> tuple[jax.Array, jax.Array]:
    cross = [x_MxBxS[n].T @ x_MxBxS[i] for i in range(n)]
    squared = x_MxBxS if blocks.wide else x_MxBxS[n:]
    return jnp.stack(cross), blocks.grams(squared)

  cross_NxSxS, gram_MxSxS = blocks.sum(terms)
  lambda_S, v_SxS = jnp.linalg.eigh(gram_MxSxS[-1], symmetrize_input=False)
  sigma_S = jnp.sqrt(jnp.maximum(lambda_S, 0.0))
  found_S = sigma_S > FOUND * sigma_S.max()
  # <a_r, a_r^i> on either side; U^T u_r = sigma_r v_r gives the other square.
  inner_NxS = ((cross_NxSxS @ v_SxS) * v_SxS).sum(1)
  if blocks.wide:
    square_NxS = ((mirrored(gram_MxSxS[:n]) @ v_SxS) * v_SxS).sum(1)
  else:
    inverse_S = jnp.where(found_S, 1.0 / jnp.where(found_S, sigma_S, 1.0), 0.0)
    square_NxS = ((v_SxS.T @ cross_NxSxS * inverse_S[:, None]) ** 2).sum(2)
  share_NxS = inner_NxS / jnp.maximum(square_NxS, SMALLEST_SQUARE)
  gamma_S = n / jnp.maximum(params.alpha, share_NxS).sum(0)
  gamma_S = jnp.where(found_S, gamma_S, 1.0)

  k_SxS = (v_SxS * gamma_S) @ v_SxS.T
  out_RxC = blocks.map(
    lambda x_MxBxS: x_MxBxS[n] @ k_SxS.astype(x_MxBxS.dtype), gamma_S.max()
  )
  return Dense(out_RxC), _stats(gamma_S, found_S | ~found_S.any())


def _stats(gamma_S: jax.Array, counted_S: jax.Array) -> Stats:
  return {
    'gamma_min': jnp.float32(jnp.where(counted_S, gamma_S, jnp.inf).min()),
    'gamma_mean': jnp.float32((gamma_S * counted_S).sum() / counted_S.sum()),
    'gamma_max': jnp.float32(jnp.where(counted_S, gamma_S, 0.0).max()),
  }


POST = Post(
  name='svc',
  source='Li et al. 2026, arXiv 2602.05536 (SVC)',
  params=Svc,
  apply=apply,
  whole_matrix=True,
  float64=True,
  block_scratch=lambda n: 60 * n + 40,
)
