"""Heads in float64 on the host, for the matrices that the fast solver flags.

A flagged head is first refined: the float32 solver has found its subspace, only the
rotation between close singular vectors is uncertain. Where the refinement does not
settle (ties), the whole Gram matrix is diagonalised. The matrix stays float32 and is
widened block by block.
"""

from typing import NamedTuple

import numpy as np

SMALL = 256  # short sides up to this are diagonalised at once
SETTLED = 3e-5  # error estimate at which a refinement ends: well below MAX_ERROR
MAX_STEPS = 4  # a step costs a fifth of the exact solution
BLOCK_ROWS = 1024  # rows widened to float64 at a time


class HostHead(NamedTuple):
  """As head.Head: H = sum_k y_k v_k^T, float64; `error` estimates its error."""

  y_KxR: np.ndarray
  v_KxC: np.ndarray
  sigma_K: np.ndarray
  sigma_next: float
  error: float
  certified: bool


def host_head(delta_RxC: np.ndarray, k: int, ritz_MxC: np.ndarray) -> HostHead:
  """The head of rank k of a float32 matrix, from starting rows `ritz_MxC`."""
  if min(delta_RxC.shape) > SMALL:
    refined = refined_head(delta_RxC, k, ritz_MxC)
    if refined is not None:
      return refined
  return exact_head(delta_RxC, k)


def refined_head(
  delta_RxC: np.ndarray, k: int, ritz_MxC: np.ndarray
) -> HostHead | None:
  """Rayleigh-Ritz on the start and its residuals, in turn, until the head settles.

  None where it does not within MAX_STEPS. (Knyazev, SIAM J. Sci. Comput. 23, 2001.)
  """
  m = ritz_MxC.shape[0]
  basis_CxM = np.asarray(ritz_MxC, np.float64).T
  for _ in range(MAX_STEPS):
    q_CxM = np.linalg.qr(basis_CxM)[0]
    y_RxM = _times(delta_RxC, q_CxM)
    theta_M, s_MxM = np.linalg.eigh(y_RxM.T @ y_RxM)
    s_MxM = s_MxM[:, ::-1][:, :m]
    theta_M = np.maximum(theta_M[::-1][:m], 0.0)
    y_RxM, v_CxM = y_RxM @ s_MxM, q_CxM @ s_MxM
    residual_CxM = _transposed_times(delta_RxC, y_RxM) - v_CxM * theta_M
    rho_M = np.linalg.norm(residual_CxM, axis=0)
    error = _refined_error(theta_M, rho_M, k)
    if error <= SETTLED:
      y_KxR, v_KxC, sigma_M = y_RxM[:, :k].T, v_CxM[:, :k].T, np.sqrt(theta_M)
      return HostHead(y_KxR, v_KxC, sigma_M[:k], float(sigma_M[k]), error, False)
    basis_CxM = np.hstack([v_CxM, residual_CxM])
  return None


def _refined_error(theta_M: np.ndarray, rho_M: np.ndarray, k: int) -> float:
  """Relative error of the head, where residuals are orthogonal to all M vectors.

  A residual then mixes v_t with directions outside, whose values lie below the last
  Ritz value; the close v_{k+1} inside is reached by way of these only (second order).
  """
  outside_K = theta_M[:k] - theta_M[-1] - rho_M[-1]
  gap_K = theta_M[:k] - theta_M[k]
  if not (outside_K > 0).all() or not (gap_K > 0).all():
    return np.inf
  leak_K = rho_M[:k] / outside_K * (1 + rho_M[k] / gap_K)
  return float(np.sqrt(2 * np.sum(theta_M[:k] * leak_K**2) / theta_M[:k].sum()))


def exact_head(delta_RxC: np.ndarray, k: int) -> HostHead:
  """The head from the whole float64 Gram matrix of the short side.

  Squaring the condition costs nothing here: in float64 the head's relative error
  is about 1e-16 / gap, and the projection `delta V V^T` never divides by sigma.
  """
  n_rows, n_cols = delta_RxC.shape
  k = min(k, n_rows, n_cols)
  if n_rows >= n_cols:
    theta, vectors = np.linalg.eigh(_transposed_times(delta_RxC, delta_RxC))
    v_CxK = vectors[:, ::-1][:, :k]
  else:
    theta, vectors = np.linalg.eigh(_row_gram(delta_RxC))
    v_CxK = np.linalg.qr(_transposed_times(delta_RxC, vectors[:, ::-1][:, :k]))[0]
  y_KxR = _times(delta_RxC, v_CxK).T
  sigma_next = float(max(theta[::-1][k], 0.0) ** 0.5) if theta.size > k else 0.0
  sigma_K = np.linalg.norm(y_KxR, axis=1)
  return HostHead(y_KxR, v_CxK.T, sigma_K, sigma_next, error=2.0**-24, certified=True)


def _times(delta_RxC: np.ndarray, x_CxM: np.ndarray) -> np.ndarray:
  """delta x in float64, RxM."""
  x_CxM = np.asarray(x_CxM, np.float64)
  return np.vstack(
    [
      delta_RxC[i : i + BLOCK_ROWS].astype(np.float64) @ x_CxM
      for i in range(0, delta_RxC.shape[0], BLOCK_ROWS)
    ]
  )


def _row_gram(delta_RxC: np.ndarray) -> np.ndarray:
  """delta delta^T in float64, RxR."""
  n_rows, n_cols = delta_RxC.shape
  out_RxR = np.zeros((n_rows, n_rows))
  for i in range(0, n_cols, BLOCK_ROWS):
    block = delta_RxC[:, i : i + BLOCK_ROWS].astype(np.float64)
    out_RxR += block @ block.T
  return out_RxR


def _transposed_times(delta_RxC: np.ndarray, y_RxM: np.ndarray) -> np.ndarray:
  """delta^T y in float64, CxM."""
  out_CxM = np.zeros((delta_RxC.shape[1], y_RxM.shape[1]))
  for i in range(0, delta_RxC.shape[0], BLOCK_ROWS):
    block = delta_RxC[i : i + BLOCK_ROWS].astype(np.float64)
    out_CxM += block.T @ np.asarray(y_RxM[i : i + BLOCK_ROWS], np.float64)
  return out_CxM
