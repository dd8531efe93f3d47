"""ResMerge (arXiv 2606.02252): residual consensus as backbone, heads as correction.

Everything is a function of two NxN Gram matrices, <R_i, R_j> and <H_i, H_j>; no
residual is kept. Three variants of one kernel: `paper` follows Eq. 6-16 and A.2,
`release` the authors' public code of July 2026, `release_initial` that of June 2026.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import (
  another_pass,
  gram,
  head_gram,
  residual,
  squares_of_sums,
)
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.task_vectors import Products, TaskVectors
from resmerge_jax.methods.base import (
  Context,
  LowRank,
  Method,
  Refit,
  Stats,
  rank_one_terms,
)
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.types import Family

BRANCHES = ('consensus', 'mean', 'zero')  # what the backbone A came out as
CONSENSUS, MEAN, ZERO = range(3)
TINY = 1e-8  # the releases' absolute thresholds on norms
CANCELS = 0.05  # share of a squared sum below which the Gram matrix loses digits
CANCELLED = 1e-5  # |Q| / N below which float32 leaves Q no direction
NO_RESIDUAL = 2e-6  # ||R|| / ||D|| that the rounding of a head leaves by itself


def merge(
  delta_NxRxC: TaskVectors | Products,
  head: Head | None,
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,
  params: ResMerge,
) -> tuple[LowRank, Stats]:
  """ResMerge of one matrix: sum_i a_i R_i + b sum_i H_i, as Eq. 16 less W_0."""
  assert head is not None
  measured = measure(delta_NxRxC, head, params=params)
  return update(measured, *rank_one_terms(head), family=family, params=params)


def measure(
  delta_NxRxC: TaskVectors | Products, head: Head, *, params: ResMerge
) -> dict[str, jax.Array]:
  """<R_i, R_j>, <H_i, H_j>, ||Q|| and the norm of the sum of all residuals."""
  gram_R_NxN = gram(residual(delta_NxRxC, head))  # Eq. 6
  gram_H_NxN = head_gram(head)
  norm_R_N = _residual_norms(gram_R_NxN, gram_H_NxN)
  unit_N = _unit_scale(norm_R_N, params)  # q_i = unit_i R_i, Eq. 7
  norm_Q, norm_sum_R = _norms_of_sums(
    gram_R_NxN, jnp.stack([unit_N, norm_R_N > 0]), delta_NxRxC, head
  )
  return {
    'gram_R_NxN': gram_R_NxN, 'gram_H_NxN': gram_H_NxN,
    'norm_Q': norm_Q, 'norm_sum_R': norm_sum_R,
  }  # fmt: skip


def update(
  measured: Mapping[str, jax.Array],
  u_TxR: jax.Array,
  v_TxC: jax.Array,
  *,
  family: Family | None,
  params: ResMerge,
) -> tuple[LowRank, Stats]:
  """The rest of Eq. 7-16: arithmetic on a few numbers. u_TxR are the scaled vectors."""
  # Apart from the passes over matrices: what becomes of their numbers beside this, a
  # recipe say, must not change what is computed here.
  measured, u_TxR, v_TxC = another_pass(dict(measured), u_TxR, v_TxC)
  gram_R_NxN, gram_H_NxN = measured['gram_R_NxN'], measured['gram_H_NxN']
  norm_Q, norm_sum_R = measured['norm_Q'], measured['norm_sum_R']
  n = gram_R_NxN.shape[0]
  norm_R_N, norm_H_N = _residual_norms(gram_R_NxN, gram_H_NxN), _norms(gram_H_NxN)
  unit_N = _unit_scale(norm_R_N, params)
  s_R, c_R = _reliability(gram_R_NxN, unit_N, norm_R_N, norm_Q, params)  # Eq. 8
  score = _score(s_R, c_R, n, params) * params.scale_of(family)
  beta = params.beta_max - (params.beta_max - params.beta_min) * score  # Eq. 9

  n_R = norm_R_N.mean()  # Eq. 10
  coherence = (c_R + 1) / 2 if params.variant == 'paper' else c_R
  alpha_R = coherence**beta  # Eq. 11
  branch = _branch(c_R, norm_R_N, norm_Q, params)
  on_branch = (branch == CONSENSUS, branch == MEAN)
  a = alpha_R * n_R / jnp.maximum(norm_Q + _e(params), TINY**2)
  a_N = jnp.select(on_branch, (a * unit_N, (norm_R_N > 0) / n), 0.0)  # Eq. 12
  norm_A = jnp.select(on_branch, (a * norm_Q, norm_sum_R / n), 0.0)

  s_H = _head_agreement(gram_H_NxN, norm_H_N, params)  # Eq. 13-14
  b = _correction(s_H, norm_A, gram_H_NxN, norm_H_N, params)  # Eq. 15
  stats = {
    's_R': s_R, 'c_R': c_R, 'score': score, 'beta': beta, 'alpha_R': alpha_R,
    'n_R': n_R, 'S_H': s_H, 'norm_R': norm_R_N, 'norm_H': norm_H_N,
    'norm_A': norm_A, 'norm_C': b * jnp.sqrt(jnp.maximum(gram_H_NxN.sum(), 0.0)),
    'branch': branch,
  }  # fmt: skip
  # Eq. 16 with R_i = D_i - H_i: sum_i a_i D_i + sum_i (b - a_i) H_i
  w_T = jnp.repeat(b - a_N, len(u_TxR) // n)
  return LowRank(a_N, w_T, u_TxR, v_TxC), stats


def _norms(gram_NxN: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.maximum(jnp.diagonal(gram_NxN), 0.0))


def _residual_norms(gram_R_NxN: jax.Array, gram_H_NxN: jax.Array) -> jax.Array:
  """||R_i||, zero where rounding is all there is."""
  norm_R_N = _norms(gram_R_NxN)
  return jnp.where(norm_R_N > NO_RESIDUAL * _norms(gram_H_NxN), norm_R_N, 0.0)


def _norms_of_sums(
  gram_NxN: jax.Array,
  coefficients_SxN: jax.Array,
  delta_NxRxC: TaskVectors | Products,
  head: Head,
) -> jax.Array:
  """||sum_n s_n R_n|| per row s: from the Gram matrix unless terms cancel in it.

  The Gram matrix gives a square to a few units of float32 of (sum_n s_n ||R_n||)^2; at
  CANCELS of that the norm still has six digits. Below, the matrices are summed first.
  """
  # Sums of products, not dots: at this size they compile in a tenth of the time.
  s_SxN = coefficients_SxN
  squares_S = (s_SxN[:, :, None] * gram_NxN * s_SxN[:, None, :]).sum((1, 2))
  most_S = (s_SxN * _norms(gram_NxN)).sum(1) ** 2
  squares_S = jax.lax.cond(
    jnp.any(squares_S < CANCELS * most_S),
    lambda: squares_of_sums(residual(*another_pass(delta_NxRxC, head)), s_SxN),
    lambda: squares_S,
  )
  return jnp.sqrt(squares_S)


def _e(params: ResMerge) -> float:
  """Epsilon where the paper adds it to ||Q|| and ||H_mean||; the releases do not."""
  return params.eps if params.variant == 'paper' else 0.0


def _mean_of_pairs(x_NxN: jax.Array, counted_N: jax.Array | None = None) -> jax.Array:
  """Mean over the pairs i < j (both counted). No pair, one expert: agreement is 1."""
  n = x_NxN.shape[0]
  counted_N = jnp.ones(n, bool) if counted_N is None else counted_N
  pair_NxN = jnp.triu(counted_N[:, None] & counted_N[None, :], 1)
  pairs = pair_NxN.sum()
  mean = jnp.where(pair_NxN, x_NxN, 0.0).sum() / jnp.maximum(pairs, 1)
  return jnp.where(pairs > 0, mean, jnp.where(counted_N.sum() == 1, 1.0, 0.0))


def _unit_scale(norm_N: jax.Array, params: ResMerge) -> jax.Array:
  """1 / (||R_i|| + e), or 1 / max(||R_i||, e) in the first release; 0 for R_i = 0."""
  if params.variant == 'release_initial':
    size_N = jnp.maximum(norm_N, params.eps)
  else:
    size_N = norm_N + params.eps
  return jnp.where(norm_N > 0, 1.0 / jnp.where(norm_N > 0, size_N, 1.0), 0.0)


def _reliability(
  gram_NxN: jax.Array,
  unit_N: jax.Array,
  norm_N: jax.Array,
  norm_Q: jax.Array,
  params: ResMerge,
) -> tuple[jax.Array, jax.Array]:
  """s_R, the mean pairwise cosine, and c_R, the mean cosine to q_src (Eq. 8)."""
  q_NxN = gram_NxN * unit_N[:, None] * unit_N[None, :]  # <q_i, q_j>
  if params.variant == 'release_initial':
    return _mean_of_pairs(q_NxN), jnp.minimum(norm_Q / norm_N.shape[0], 1.0)
  e, norm_q_N = params.eps + TINY**2, norm_N * unit_N
  s_R = _mean_of_pairs(q_NxN / (norm_q_N[:, None] * norm_q_N[None, :] + e))
  to_src_N = q_NxN.sum(1) / (norm_Q + e)  # <q_i, q_src>
  # Their sum is |Q|^2, which `norm_Q` holds free of the cancellation met here.
  to_src_N *= norm_Q**2 / jnp.maximum(q_NxN.sum(), 1e-3 * norm_Q**2 + TINY**2)
  c_R = jnp.mean(to_src_N / (norm_q_N * norm_Q / (norm_Q + e) + e))
  return s_R, c_R if params.variant == 'paper' else jnp.clip(c_R, 0.0, 1.0)


def _score(s_R: jax.Array, c_R: jax.Array, n: int, params: ResMerge) -> jax.Array:
  """The SRC-A score before the family scale (Eq. 9), in [0, 1]."""
  if params.variant != 'release_initial':
    return jnp.clip(((s_R + 1) / 2 + (c_R + 1) / 2) / 2, 0.0, 1.0)
  chance = n**-0.5  # |mean of n orthogonal unit directions|
  reference = max(0.60, chance + params.eps)
  p = jnp.clip((s_R - 0.03) / (0.05 - 0.03), 0.0, 1.0)
  g = jnp.clip((c_R - chance) / (reference - chance), 0.0, 1.0)
  return (p + g) / 2


def _branch(
  c_R: jax.Array, norm_R_N: jax.Array, norm_Q: jax.Array, params: ResMerge
) -> jax.Array:
  """Which backbone: the release falls back to the mean where coherence is chance.

  The paper has no such rule. Where directions cancel (|Q| ~ 0) its Eq. 12 divides
  noise by noise; there the backbone is zero, as in the first release.
  """
  n = norm_R_N.shape[0]
  nothing = jnp.all(norm_R_N <= (0.0 if params.variant == 'paper' else TINY))
  if params.backbone == 'none':
    return jnp.int32(ZERO)
  if params.backbone == 'mean':
    return jnp.where(nothing, ZERO, MEAN)
  cancelled = norm_Q < CANCELLED * n
  if params.variant == 'release':
    weak = cancelled | (c_R <= n**-0.5)
    return jnp.select((nothing, weak), (ZERO, MEAN), CONSENSUS)
  return jnp.where(nothing | cancelled, ZERO, CONSENSUS)


def _head_agreement(
  gram_NxN: jax.Array, norm_N: jax.Array, params: ResMerge
) -> jax.Array:
  """S_H: mean over pairs of max(cos(H_i, H_j), 0) (Eq. 13-14), or another gate.

  The paper takes raw heads (and + e); the releases unit heads, zero heads dropped.
  """
  if params.head_gate == 'none':
    return jnp.float32(1)

  def opening(cos_NxN: jax.Array) -> jax.Array:
    if params.head_gate == 'conflict':
      return 1.0 + jnp.minimum(cos_NxN, 0.0)
    return jnp.maximum(cos_NxN, 0.0)

  outer_NxN = norm_N[:, None] * norm_N[None, :]
  if params.variant == 'paper':
    cos_NxN = gram_NxN / (outer_NxN + params.eps + TINY**2)
    return _mean_of_pairs(opening(cos_NxN))
  counted_N = norm_N > TINY
  cos_NxN = gram_NxN / jnp.where(outer_NxN > 0, outer_NxN, 1.0)
  return jnp.clip(_mean_of_pairs(opening(cos_NxN), counted_N), 0.0, 1.0)


def _correction(
  s_H: jax.Array,
  norm_A: jax.Array,
  gram_NxN: jax.Array,
  norm_N: jax.Array,
  params: ResMerge,
) -> jax.Array:
  """b of C = b sum_i H_i: rho S_H ||A|| / (||H_mean|| + e) / N (Eq. 15)."""
  n = norm_N.shape[0]
  if params.backbone == 'none':
    return jnp.float32(1.0 / n)  # head-only: the mean head, whole
  norm_mean = jnp.sqrt(jnp.maximum(gram_NxN.sum(), 0.0)) / n
  b = params.rho * s_H * norm_A / jnp.maximum(norm_mean + _e(params), TINY**2) / n
  exists = norm_mean > CANCELLED * norm_N.mean()  # else heads cancel: no direction
  if params.variant != 'paper':
    exists &= (norm_A > TINY) & (norm_mean > TINY)
  return jnp.where(exists, b, 0.0)


METHOD = Method(
  name='resmerge',
  source='ResMerge, arXiv 2606.02252',
  params=ResMerge,
  merge=merge,
  head_rank=lambda params: params.head_rank,
  branches=BRANCHES,
  gets=lambda params: 'hidden',  # noqa: ARG005
  terms=lambda params, n, k: n * k,  # noqa: ARG005
  refit=Refit(
    fields=('rho', 'beta_min', 'beta_max'),
    measures=('variant', 'eps'),
    shapes=lambda n: {
      **dict.fromkeys(('gram_R_NxN', 'gram_H_NxN'), (n, n)),
      **dict.fromkeys(('norm_Q', 'norm_sum_R'), ()),
    },
    measure=measure,
    update=update,
  ),
  on_factors=True,
  # The ablation without residuals keeps whole heads.
  loses_rank=lambda params: 0 if params.backbone == 'none' else params.head_rank,
)
