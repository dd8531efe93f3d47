"""From the numbers of a tensor, as devices return them, to its record (see diagnosis.py)."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resmerge_jax.linalg.quadrature import Entropy, entropy_beside, entropy_of

# What blocks of rows of a tensor add up to.
SUMS = (
  'gram_WxW', 'base_sq', 'changed', 'over_N', 'shared_N', 'below_N', 'several',
  'conflict', 'size',
)  # fmt: skip
SAME_RANK = 1e-4  # of the largest singular value of a sample: what counts as more rank
Numbers = Mapping[str, Any]


def added(blocks: Sequence[Numbers]) -> dict[str, Any]:
  """Numbers of a tensor: its blocks of rows, in their order; only sums are in several."""
  if len(blocks) == 1:
    return dict(blocks[0])
  return {key: sum(block[key] for block in blocks) for key in SUMS}


def measured_record(found: Numbers, n: int) -> dict[str, Any]:
  """The measured fields of a record, of n experts.

  Args:
    found: what `statistics.Statistics` returns, beside `size`, the number of entries,
      and the head's `sigma_NxK`, `sigma_next_N`, `error_N`, `certified_N`, `float64_N`
      and `sample_rank_N` where there is one. A merged model may follow the experts.
  """
  gram_WxW = np.asarray(found['gram_WxW'], np.float64)
  norm_W = np.sqrt(np.diagonal(gram_WxW))
  base_norm = math.sqrt(found['base_sq'])
  changed_N = np.asarray(found['changed'][:n])
  record = {
    'base_norm': base_norm,
    'delta_norm': norm_W[:n].tolist(),
    'relative_norm': [_ratio(x, base_norm) for x in norm_W[:n]],
    'zero_fraction': (1 - changed_N / max(found['size'], 1)).tolist(),
    'below_step': [
      _ratio(b, c) for b, c in zip(found['below_N'], changed_N, strict=True)
    ],
    'changed': found['over_N'].tolist(),
    'shared': found['shared_N'].tolist(),
    'cos_delta_pairs': cosines(gram_WxW[:n, :n]),
    'several': int(found['several']),
    'sign_conflict': _ratio(found['conflict'], found['several']),
  }
  if len(norm_W) > n:
    record['distance'] = [distance(gram_WxW, n, i) for i in range(n)]
  if 'sigma_NxK' in found:
    record |= _of_head(found, norm_W[:n])
  if 'spectrum_NxS' in found or 'diagonal_VxM' in found:
    record |= _effective_ranks(found)
  return record


def cosines(gram_NxN: np.ndarray) -> list[float | None]:
  """Of all pairs, in the order of `itertools.combinations`; None beside a zero matrix."""
  norm_N = np.sqrt(np.maximum(np.diagonal(gram_NxN), 0))
  return [
    _ratio(gram_NxN[i, j], norm_N[i] * norm_N[j])
    for i, j in itertools.combinations(range(len(norm_N)), 2)
  ]


def distance(gram_NxN: np.ndarray, i: int, j: int) -> float:
  """||X_i - X_j||, to about 1e-3 of the longer one where they are nearly equal."""
  square = gram_NxN[i, i] - 2 * gram_NxN[i, j] + gram_NxN[j, j]
  return math.sqrt(max(square, 0.0))


def gap_of(sigma_NxK: np.ndarray, sigma_next_N: np.ndarray) -> np.ndarray:
  """1 - sigma_next / sigma_k, 0 for a zero matrix."""
  last_N = sigma_NxK[:, -1]
  return np.where(last_N > 0, 1 - sigma_next_N / np.where(last_N > 0, last_N, 1), 0)


def rank_of(sample_BxB: np.ndarray) -> int:
  """Singular values of a sampled block above SAME_RANK of its largest."""
  sigma_B = np.linalg.svd(np.asarray(sample_BxB, np.float64), compute_uv=False)
  return int(np.count_nonzero(sigma_B > SAME_RANK * sigma_B[0]))


def _of_head(found: Numbers, norm_N: np.ndarray) -> dict[str, Any]:
  sigma_NxK = np.asarray(found['sigma_NxK'], np.float64)
  next_N = np.asarray(found['sigma_next_N'], np.float64)
  gram_R_NxN, gram_H_NxN = (
    np.asarray(found[key], np.float64) for key in ('gram_R_NxN', 'gram_H_NxN')
  )
  norm_R_N, norm_H_N = (
    np.asarray(found[key], np.float64) for key in ('norm_R', 'norm_H')
  )
  there_N = (norm_R_N > 0).astype(float)  # what is not there is only rounding
  mean_H = math.sqrt(max(gram_H_NxN.sum(), 0))
  return {
    'sigma': sigma_NxK.tolist(),
    'sigma_next': next_N.tolist(),
    'gap': gap_of(sigma_NxK, next_N).tolist(),
    'energy': _energy(sigma_NxK, np.asarray(found['energy_NxE'], np.float64), norm_N),
    'stable_rank': [
      _ratio(x**2, s**2) for x, s in zip(norm_N, sigma_NxK[:, 0], strict=True)
    ],
    'stable_rank_residual': [
      _ratio(x**2, s**2) for x, s in zip(norm_R_N, next_N, strict=True)
    ],
    'sample_rank': list(found['sample_rank_N']),
    **{key: float(found[key]) for key in ('s_R', 'c_R', 'S_H')},
    'norm_R': norm_R_N.tolist(),
    'norm_H': norm_H_N.tolist(),
    'retention_head': _ratio(mean_H, norm_H_N.sum()),
    'retention_residual': _ratio(float(found['norm_sum_R']), norm_R_N.sum()),
    'cos_head_pairs': cosines(gram_H_NxN),
    'cos_residual_pairs': cosines(gram_R_NxN * there_N * there_N[:, None]),
    'head_error_estimate': np.asarray(found['error_N'], np.float64).tolist(),
    'certified': found['certified_N'].tolist(),
    'float64_head': found['float64_N'].tolist(),
  }


def _energy(
  sigma_NxK: np.ndarray, ritz_NxE: np.ndarray, norm_N: np.ndarray
) -> list[list[float] | None]:
  """Cumulative shares: of the head as solved, then of the solver's further vectors."""
  k = sigma_NxK.shape[1]
  shares_NxE = np.hstack([sigma_NxK**2, ritz_NxE[:, k:]])
  sums_NxE = np.cumsum(shares_NxE, axis=1)
  return [
    np.minimum(sums_E / norm**2, 1.0).tolist() if norm else None
    for sums_E, norm in zip(sums_NxE, norm_N, strict=True)
  ]


def _effective_ranks(found: Numbers) -> dict[str, Any]:
  """exp of the entropies of the whole spectrum and of that without the head."""
  sigma_NxK = np.asarray(found['sigma_NxK'], np.float64)
  exact = 'spectrum_NxS' in found
  ranks = []
  for i, sigma_K in enumerate(sigma_NxK):
    whole: Entropy | None = None
    rest: Entropy | None = None
    norm = math.hypot(found['norm_R'][i], found['norm_H'][i])
    if norm and exact:
      p_S = np.asarray(found['spectrum_NxS'][i], np.float64)
      whole, rest = entropy_of(p_S), entropy_of(p_S[len(sigma_K) :])
    elif norm:
      whole, rest = _estimated(found, i, (sigma_K / norm) ** 2)
    if not found['norm_R'][i]:
      rest = None
    ranks.append((*_rank_of(whole), *_rank_of(rest)))
  fields = (
    'effective_rank', 'effective_rank_error', 'effective_rank_residual',
    'effective_rank_residual_error',
  )  # fmt: skip
  columns = map(list, zip(*ranks, strict=True))
  return {
    **dict(zip(fields, columns, strict=True)),
    'effective_rank_by': 'exact' if exact else 'estimate',
  }


def _estimated(found: Numbers, i: int, p_K: np.ndarray) -> tuple[Entropy, Entropy]:
  """Entropies of the whole and of the rest from what Lanczos saw beside the head."""
  share = max(1 - p_K.sum(), np.finfo(np.float64).tiny)
  beside = entropy_beside(
    found['diagonal_VxM'][i], found['beside_VxM'][i], found['square_V'][i], share
  )
  whole = Entropy(beside.value - float((p_K * np.log(p_K)).sum()), beside.error)
  return whole, Entropy(beside.value / share + math.log(share), beside.error / share)


def _rank_of(entropy: Entropy | None) -> tuple[float | None, float | None]:
  if entropy is None:
    return None, None
  rank = math.exp(entropy.value)
  return rank, rank * entropy.error


def _ratio(part: float, whole: float) -> float | None:
  """None where there is nothing to divide by."""
  return float(part / whole) if whole else None
