"""The statistics of one tensor in float64, by full SVD and with everything formed."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

norm = np.linalg.norm


def of_entries(
  base: np.ndarray, experts: Sequence[np.ndarray], threshold: float, bits: int
) -> dict[str, Any]:
  """What any tensor has. `bits`: of the output dtype's mantissa, with the leading one."""
  D = [np.asarray(e, np.float64) - base for e in experts]
  n_changing = sum((d != 0).astype(int) for d in D)
  over = [np.abs(d) > np.float32(threshold) for d in D]
  together = sum(m.astype(int) for m in over) >= 2
  several = n_changing >= 2
  conflict = np.any([d > 0 for d in D], 0) & np.any([d < 0 for d in D], 0)
  exponent = np.floor(np.log2(np.abs(np.where(base == 0, 1, base))))
  step = np.where(base == 0, 0, 2.0 ** (exponent - bits + 1))
  return {
    'base_norm': norm(base),
    'delta_norm': [norm(d) for d in D],
    'relative_norm': [norm(d) / norm(base) for d in D],
    'zero_fraction': [np.mean(d == 0) for d in D],
    'below_step': [np.mean((np.abs(d) < step)[d != 0]) if d.any() else None for d in D],
    'changed': [int(m.sum()) for m in over],
    'shared': [int((m & together).sum()) for m in over],
    'several': int(several.sum()),
    'sign_conflict': np.mean(conflict[several]) if several.any() else None,
    'cos_delta_pairs': cosines(D),
  }


def of_matrix(D: Sequence[np.ndarray], k: int, n_energies: int) -> dict[str, Any]:
  """What heads of rank k and whole spectra give, of updates that are not zero."""
  found: dict[str, Any] = {'H': [], 'R': []}
  columns = (
    'sigma', 'sigma_next', 'gap', 'energy', 'stable_rank', 'stable_rank_residual',
    'effective_rank', 'effective_rank_residual',
  )  # fmt: skip
  found |= {name: [] for name in columns}
  for d in D:
    u, sigma, vt = np.linalg.svd(np.asarray(d, np.float64), full_matrices=False)
    head = (u[:, :k] * sigma[:k]) @ vt[:k]
    found['H'].append(head)
    found['R'].append(d - head)
    energy = np.cumsum(sigma**2) / norm(d) ** 2
    values = (
      sigma[:k], sigma[k], 1 - sigma[k] / sigma[k - 1], energy[:n_energies],
      norm(d) ** 2 / sigma[0] ** 2, norm(d - head) ** 2 / sigma[k] ** 2,
      effective_rank(sigma), effective_rank(sigma[k:]),
    )  # fmt: skip
    for name, value in zip(columns, values, strict=True):
      found[name].append(value)
  H, R = found.pop('H'), found.pop('R')
  q = [r / norm(r) for r in R]
  Q = sum(q)
  return found | {
    's_R': np.mean(cosines(R)),
    'c_R': np.mean([np.vdot(x, Q) / norm(Q) for x in q]),
    'S_H': np.mean(np.maximum(cosines(H), 0)),
    'norm_R': [norm(r) for r in R],
    'norm_H': [norm(h) for h in H],
    'retention_head': norm(sum(H) / len(H)) / np.mean([norm(h) for h in H]),
    'retention_residual': norm(sum(R) / len(R)) / np.mean([norm(r) for r in R]),
    'cos_head_pairs': cosines(H),
    'cos_residual_pairs': cosines(R),
  }


def effective_rank(sigma: np.ndarray) -> float:
  p = sigma[sigma > 0] ** 2 / (sigma**2).sum()
  return float(np.exp(-(p * np.log(p)).sum()))


def cosines(X: Sequence[np.ndarray]) -> list[float | None]:
  return [
    float(np.vdot(x, y) / (norm(x) * norm(y))) if x.any() and y.any() else None
    for x, y in itertools.combinations(X, 2)
  ]
