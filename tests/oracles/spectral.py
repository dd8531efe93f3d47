"""The spectral methods in float64, one LAPACK SVD after the other.

D_i are the updates of the experts, N (T in the papers) their number, r the short side.
Where singular vectors are missing or repeat, LAPACK's arbitrary ones come in:
`ill_posed` says where the equations do not determine the result.
"""

from collections.abc import Sequence

import numpy as np

Matrices = Sequence[np.ndarray]


def thin_svd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """U, sigma, V (not V^T)."""
  u, sigma, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
  return u, sigma, vt.T


def polar(x: np.ndarray) -> np.ndarray:
  """The nearest matrix with orthonormal columns or rows."""
  u, _, v = thin_svd(x)
  return u @ v.T


def tsv(deltas: Matrices, scale: float = 1.0) -> np.ndarray:
  n, rank = len(deltas), min(deltas[0].shape)
  kept = int(rank * (1 / n))
  if kept == 0:
    return np.zeros(deltas[0].shape)
  left, weights, right = [], [], []
  for delta in deltas:
    u, sigma, v = thin_svd(delta)
    left.append(u[:, :kept])
    weights.append(sigma[:kept])
    right.append(v[:, :kept])
  weight = np.diag(np.concatenate(weights))
  return scale * polar(np.hstack(left)) @ weight @ polar(np.hstack(right)).T


def iso_c(deltas: Matrices, scale: float = 1.0) -> np.ndarray:
  u, sigma, v = thin_svd(sum(np.asarray(d, np.float64) for d in deltas))
  return scale * sigma.mean() * u @ v.T


def split(rank: int, n: int, fraction: float) -> tuple[int, int]:
  """Common directions and directions per expert of ISO-CTS."""
  per_task = int(np.rint((rank - int(rank * fraction)) / n))  # halves to even
  return rank - n * per_task, per_task


def iso_cts_parts(deltas: Matrices, fraction: float) -> tuple[np.ndarray, ...]:
  """U, sigma and V before they are made orthonormal and level."""
  deltas = [np.asarray(d, np.float64) for d in deltas]
  common, per_task = split(min(deltas[0].shape), len(deltas), fraction)
  u, sigma, v = (x[..., :common] for x in thin_svd(sum(deltas)))
  left, weights, right = [], [], []
  for delta in deltas:
    u_i, sigma_i, v_i = thin_svd(delta - u @ (u.T @ delta))
    left.append(u_i[:, :per_task])
    weights.append(sigma_i[:per_task])
    right.append(v_i[:, :per_task])
  return (
    np.hstack([*left, u]),
    np.concatenate([*weights, sigma]),
    np.hstack([*right, v]),
  )


def iso_cts(
  deltas: Matrices, scale: float = 1.0, common_fraction: float = 0.8
) -> np.ndarray:
  u, sigma, v = iso_cts_parts(deltas, common_fraction)
  return scale * sigma.mean() * polar(u) @ polar(v).T


def star(deltas: Matrices, eta: float = 40.0) -> tuple[np.ndarray, list[float]]:
  """The update, and ||D_i'|| / ||D_i|| (0 for an unchanged expert)."""
  update, ratios = np.zeros(deltas[0].shape), []
  for delta in deltas:
    u, sigma, v = thin_svd(delta)
    if sigma[0] == 0:
      ratios.append(0.0)
      continue
    total, kept = sigma.sum(), 0
    while sigma[:kept].sum() < eta / 100 * total and kept < len(sigma):
      kept += 1
    new = sigma[:kept] * total / sigma[:kept].sum()
    update += (u[:, :kept] * new) @ v[:, :kept].T / len(deltas)
    ratios.append(float(np.linalg.norm(new) / np.linalg.norm(sigma)))
  return update, ratios


def rank_mask(deltas: Matrices, rank_ratio: float, scale: float) -> np.ndarray:
  update = np.zeros(deltas[0].shape)
  for delta in deltas:
    u, sigma, v = thin_svd(delta)
    mask = np.arange(len(sigma)) < int(len(sigma) * (rank_ratio or 1 / len(deltas)))
    update += scale * (u * (sigma * mask)) @ v.T
  return update


def svc(
  update: np.ndarray, deltas: Matrices, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
  """The calibrated update, and gamma of every direction with weight."""
  u, sigma, v = thin_svd(update)
  gammas = []
  for r in range(len(sigma)):
    a = u[:, r] @ np.asarray(update, np.float64)
    shares = 0.0
    for delta in deltas:
      a_i = u[:, r] @ np.asarray(delta, np.float64)
      shares += max(alpha, a @ a_i / max(a_i @ a_i, 1e-12))
    gammas.append(len(deltas) / shares)
  gamma = np.array(gammas)
  return (u * (gamma * sigma)) @ v.T, gamma[sigma > 1e-7 * sigma.max()]


def ratio(x: np.ndarray, count: int) -> float:
  """sigma_count / sigma_1 of x; 1 for no direction, 0 for a matrix of zeros."""
  if count == 0:
    return 1.0
  _, sigma, _ = thin_svd(x)
  return float(sigma[count - 1] / sigma[0]) if sigma[0] > 0 else 0.0


def full_ratio(x: np.ndarray) -> float:
  return ratio(x, min(x.shape))


def weakest(method: str, deltas: Matrices, common_fraction: float = 0.8) -> float:
  """How near to ill-posed a matrix is: the smallest relative singular value among all
  that the result depends on, of updates, of their sum, of the concatenated vectors.

  About 0 where an expert lacks directions asked of it, or vectors repeat: any LAPACK
  then has its own result. 1 where the update is zero.
  """
  deltas = [np.asarray(d, np.float64) for d in deltas]
  n, rank, total = len(deltas), min(deltas[0].shape), sum(deltas)
  if not any(d.any() for d in deltas):
    return 1.0
  if method == 'iso_c':
    return full_ratio(total) if total.any() else 1.0
  if method == 'tsv':
    kept = int(rank * (1 / n))
    if kept == 0:
      return 1.0
    u, _, v = zip(*map(thin_svd, deltas), strict=True)
    sides = [np.hstack([x[:, :kept] for x in side]) for side in (u, v)]
    return min(*(ratio(d, kept) for d in deltas), *map(full_ratio, sides))
  common, per_task = split(rank, n, common_fraction)
  u, sigma, v = iso_cts_parts(deltas, common_fraction)
  own = [1.0]
  for i, delta in enumerate(deltas if per_task else []):
    whole = np.linalg.norm(delta, 2)
    own.append(sigma[(i + 1) * per_task - 1] / whole if whole > 0 else 0.0)
  return min(ratio(total, common), full_ratio(u), full_ratio(v), *own)
