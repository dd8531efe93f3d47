"""Exact heads in float64 on the host, for the matrices the fast solver flags."""

import numpy as np


def exact_head(
  delta_RxC: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
  """(y_KxR, v_KxC, sigma_K, sigma_next) from the float64 Gram matrix.

  Squaring the condition costs nothing here: in float64 the head's relative error
  is about 1e-16 / gap, and the projection `delta V V^T` never divides by sigma.
  """
  d_RxC = np.asarray(delta_RxC, np.float64)
  n_rows, n_cols = d_RxC.shape
  k = min(k, n_rows, n_cols)
  tall = n_rows >= n_cols
  gram = d_RxC.T @ d_RxC if tall else d_RxC @ d_RxC.T
  theta, vectors = np.linalg.eigh(gram)
  short_side = vectors[:, ::-1][:, :k].T
  if tall:
    v_KxC, y_KxR = short_side, short_side @ d_RxC.T
  else:
    v_KxC = np.linalg.qr((short_side @ d_RxC).T)[0].T
    y_KxR = v_KxC @ d_RxC.T
  sigma_next = max(theta[::-1][k], 0.0) ** 0.5 if theta.size > k else 0.0
  return y_KxR, v_KxC, np.linalg.norm(y_KxR, axis=1), float(sigma_next)
