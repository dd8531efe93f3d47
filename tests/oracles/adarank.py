"""AdaRank's relaxed merge of one matrix and its gradient, in NumPy and float64."""

import numpy as np

from tests.oracles.spectral import Matrices, thin_svd


def merged(
  base: np.ndarray, deltas: Matrices, m_NxS: np.ndarray, lambda_N: np.ndarray
) -> np.ndarray:
  """W_0 + sum_i lambda_i U_i diag(b_i sigma_i) V_i^T with b = 1 where m > 0."""
  out = base.astype(np.float64)
  for delta, m_S, weight in zip(deltas, m_NxS, lambda_N, strict=True):
    u, sigma, v = thin_svd(delta)
    out = out + weight * (u * (sigma * (m_S > 0))) @ v.T
  return out


def gradients(
  slope: np.ndarray,
  deltas: Matrices,
  m_NxS: np.ndarray,
  lambda_N: np.ndarray,
  temperature: float,
) -> tuple[np.ndarray, np.ndarray]:
  """d/dm and d/dlambda of a loss whose slope at the merged matrix is `slope`.

  b counts as sigmoid(m / T) where it is differentiated.
  """
  of_m, of_lambda = np.zeros(m_NxS.shape), np.zeros(len(lambda_N))
  for i, delta in enumerate(deltas):
    u, sigma, v = thin_svd(delta)
    along_S = sigma * np.einsum('rs,rc,cs->s', u, slope, v)
    soft_S = 1 / (1 + np.exp(-m_NxS[i] / temperature))
    of_m[i] = lambda_N[i] * along_S * soft_S * (1 - soft_S) / temperature
    of_lambda[i] = (along_S * (m_NxS[i] > 0)).sum()
  return of_m, of_lambda
