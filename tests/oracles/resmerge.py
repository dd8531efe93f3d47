"""ResMerge of one matrix in float64, written from the paper's equations 6-16.

Slow and literal on purpose: full SVD, every intermediate formed. `release` and
`release_initial` follow the two public versions of the code where they differ.
D_i is the update of expert i, H_i its head, R_i its residual, N their number.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FAMILY_SCALES = {
  'paper': {'attention': 1.0, 'ffn': 0.25},
  'release': {'attention': 1.0, 'ffn': 1.0},
  'release_initial': {'attention': 1.0, 'ffn': 0.25},
}
# What Eqs. 7-12 give: the update A and the scalars on the way.
Backbone = tuple[np.ndarray, dict[str, Any]]

GUARD = 1e-5  # ||Q|| below GUARD * N is rounding noise of float32 directions
ZERO = 1e-8  # the released code's absolute thresholds, whatever eps is

norm = np.linalg.norm


class Params(NamedTuple):
  scale: float  # of the family
  beta_min: float
  beta_max: float
  eps: float
  guard: bool


def head(delta: np.ndarray, k: int) -> np.ndarray:
  """The best approximation of rank k, float64."""
  delta = np.asarray(delta, np.float64)
  if not delta.any():
    return np.zeros_like(delta)
  u, sigma, vt = np.linalg.svd(delta, full_matrices=False)
  return (u[:, :k] * sigma[:k]) @ vt[:k]


def cos(x: np.ndarray, y: np.ndarray, eps: float) -> float:
  return float(np.vdot(x, y) / (norm(x) * norm(y) + eps))


def clamp01(x: float) -> float:
  return min(max(x, 0.0), 1.0)


def pair_mean(values: Sequence[float]) -> float:
  """Mean over pairs of experts; 1 for a single expert, which agrees with itself."""
  return float(np.mean(values)) if values else 1.0


def mean_norm(matrices: Sequence[np.ndarray]) -> float:
  return float(np.mean([norm(x) for x in matrices]))  # Eq. 10


def _scalars(*values: Any) -> dict[str, Any]:
  names = ('s_R', 'c_R', 'score', 'beta', 'alpha_R', 'fallback')
  return dict(zip(names, values, strict=True))


def paper_backbone(R: Sequence[np.ndarray], p: Params) -> Backbone:
  q = [r / (norm(r) + p.eps) for r in R]
  Q = sum(q)
  q_src = Q / (norm(Q) + p.eps)  # Eq. 7
  s_R = pair_mean([cos(x, y, p.eps) for x, y in itertools.combinations(q, 2)])
  c_R = float(np.mean([cos(x, q_src, p.eps) for x in q]))  # Eq. 8
  s_mapped, c_mapped = (s_R + 1) / 2, (c_R + 1) / 2
  score = p.scale * (s_mapped + c_mapped) / 2
  beta = p.beta_max - (p.beta_max - p.beta_min) * score  # Eq. 9
  alpha_R = c_mapped**beta  # Eq. 11
  A = alpha_R * mean_norm(R) * q_src  # Eq. 12
  vanished = p.guard and norm(Q) < GUARD * len(R)
  if vanished:
    A = np.zeros_like(A)
  return A, _scalars(s_R, c_R, score, beta, alpha_R, 'cancelled' if vanished else None)


def release_backbone(R: Sequence[np.ndarray], p: Params) -> Backbone:
  q = [r / (norm(r) + p.eps) for r in R]
  Q = sum(q)
  q_src = Q / (norm(Q) + p.eps)
  s_R = pair_mean([cos(x, y, p.eps) for x, y in itertools.combinations(q, 2)])
  c_R = clamp01(float(np.mean([cos(x, q_src, p.eps) for x in q])))
  score = clamp01(p.scale * ((s_R + 1) / 2 + (c_R + 1) / 2) / 2)
  beta = p.beta_max - (p.beta_max - p.beta_min) * score
  alpha_R = c_R**beta  # raw, not mapped
  mean_R = sum(R) / len(R)
  if max(map(norm, R)) <= p.eps:
    A, fallback = np.zeros_like(mean_R), 'all_zero'
  elif norm(Q) <= p.eps:
    A, fallback = mean_R, 'cancelled'
  elif c_R <= 1 / math.sqrt(len(R)):  # no better than independent directions
    A, fallback = mean_R, 'low_coherence'
  else:
    A, fallback = alpha_R * mean_norm(R) * q_src, None
  return A, _scalars(s_R, c_R, score, beta, alpha_R, fallback)


def release_initial_backbone(R: Sequence[np.ndarray], p: Params) -> Backbone:
  q = [r / max(norm(r), p.eps) for r in R]
  mean_q = sum(q) / len(q)
  s_R = pair_mean([unit_cos(x, y) for x, y in itertools.combinations(q, 2)])
  c_R = float(norm(mean_q))
  floor = 1 / math.sqrt(len(R))
  reference = max(0.60, floor + p.eps)
  score = (
    p.scale
    * (clamp01((s_R - 0.03) / 0.02) + clamp01((c_R - floor) / (reference - floor)))
    / 2
  )
  beta = p.beta_max - (p.beta_max - p.beta_min) * score
  alpha_R = c_R**beta
  if max(map(norm, R)) <= p.eps or c_R <= p.eps:
    A, fallback = np.zeros_like(mean_q), 'all_zero'
  else:
    A, fallback = alpha_R * mean_norm(R) * mean_q / c_R, None
  return A, _scalars(s_R, c_R, score, beta, alpha_R, fallback)


def unit_cos(x: np.ndarray, y: np.ndarray) -> float:
  return cos(x, y, 0.0) if x.any() and y.any() else 0.0


PAIR = {  # a pair's part of S_H, from its cosine
  'agreement': lambda c: max(c, 0.0),
  'conflict': lambda c: 1.0 - max(-c, 0.0),
}


def head_gate_of(H: Sequence[np.ndarray], gate: str, variant: str, eps: float) -> float:
  """S_H, Eq. 14. The released code leaves zero heads out; the paper's have cosine 0."""
  if gate == 'none':
    return 1.0
  if variant != 'paper' and len(H) > 1:
    H = [h / norm(h) for h in H if norm(h) > ZERO]
    if not H:
      return 0.0
    eps = eps if variant == 'release' else 0.0
  return pair_mean(
    [PAIR[gate](cos(x, y, eps)) for x, y in itertools.combinations(H, 2)]
  )


def head_part(
  H: Sequence[np.ndarray],
  norm_A: float,
  S_H: float,
  variant: str,
  rho: float,
  eps: float,
) -> np.ndarray:
  """C, Eqs. 13 and 15."""
  H_mean = sum(H) / len(H)
  if variant == 'paper':
    return rho * S_H * norm_A * H_mean / (norm(H_mean) + eps)
  if rho * S_H > 0 and norm_A > ZERO and norm(H_mean) > ZERO:
    return rho * S_H * norm_A * H_mean / norm(H_mean)
  return np.zeros_like(H_mean)


BACKBONES = {
  'paper': paper_backbone,
  'release': release_backbone,
  'release_initial': release_initial_backbone,
}


def resmerge(
  deltas: Sequence[np.ndarray],
  *,
  variant: str = 'paper',
  family: str,
  head_rank: int = 1,
  beta_min: float = 0.7,
  beta_max: float = 1.0,
  rho: float = 0.2,
  eps: float = 1e-8,
  family_scale: Mapping[str, float] | None = None,
  head_gate: str = 'agreement',
  backbone: str = 'consensus',
  guard: bool = True,
) -> tuple[np.ndarray, dict[str, Any]]:
  """The update A + C of Eq. 16 for deltas of one matrix, and the scalars behind it.

  Families missing in `family_scale` have scale 0. `head_gate='none'` sets S_H to 1,
  'conflict' to 1 less the mean of max(-cos(H_i, H_j), 0); `backbone='mean'` takes
  A = mean_i R_i, 'none' adds the whole mean head instead of C.
  `guard=False` drops the paper variant's guard against vanishing ||Q||.
  """
  D = [np.asarray(d, np.float64) for d in deltas]
  H = [head(d, head_rank) for d in D]
  R = [d - h for d, h in zip(D, H, strict=True)]  # Eq. 6
  scales = FAMILY_SCALES[variant] if family_scale is None else family_scale
  p = Params(scales.get(family, 0.0), beta_min, beta_max, eps, guard)
  consensus, scalars = BACKBONES[variant](R, p)
  A = {'consensus': consensus, 'mean': sum(R) / len(R), 'none': 0 * consensus}[backbone]
  S_H = head_gate_of(H, head_gate, variant, eps)
  norm_A = float(norm(A))
  C = head_part(H, norm_A, S_H, variant, rho, eps)
  if backbone == 'none':
    C = sum(H) / len(H)
  return A + C, {
    **scalars,
    'n_R': mean_norm(R),
    'S_H': S_H,
    'norm_R': [float(norm(r)) for r in R],
    'norm_H': [float(norm(h)) for h in H],
    'norm_A': norm_A,
    'norm_C': float(norm(C)),
  }
