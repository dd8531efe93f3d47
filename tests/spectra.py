"""Matrices with a prescribed spectrum, to test solvers of the head."""

import dataclasses

import numpy as np

GAPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)


def spectrum_matrix(
  rng: np.random.Generator, rows: int, cols: int, sigmas: np.ndarray
) -> np.ndarray:
  """A float32 matrix with these singular values and random singular vectors.

  Rounding to float32 moves each value by up to about 1e-7 of the largest.
  """
  terms = len(sigmas)
  u_RxT = np.linalg.qr(rng.standard_normal((rows, terms)))[0]
  v_CxT = np.linalg.qr(rng.standard_normal((cols, terms)))[0]
  return ((u_RxT * sigmas) @ v_CxT.T).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """A named matrix whose head of rank k is wanted."""

  name: str
  rows: int
  cols: int
  k: int
  sigmas: tuple[float, ...]  # descending, min(rows, cols) of them

  def __str__(self) -> str:
    return f'{self.name}-{self.rows}x{self.cols}-k{self.k}'

  def matrix(self, seed: int = 0) -> np.ndarray:
    key = [seed, self.rows, self.cols, self.k, *self.name.encode()]
    rng = np.random.default_rng(key)
    return spectrum_matrix(rng, self.rows, self.cols, np.array(self.sigmas))

  @property
  def relative_gap(self) -> float:
    """(sigma_k - sigma_k+1) / sigma_k; 1 where the head is the whole matrix."""
    sigmas = (*self.sigmas, *[0.0] * (self.k + 1))
    at_k, below = sigmas[self.k - 1], sigmas[self.k]
    return 1.0 - below / at_k if at_k else 1.0


def spectra(k: int) -> list[Spectrum]:
  """Easy, hard and degenerate spectra for a head of rank k."""
  found = [
    Spectrum(name, 72, 56, k, _descending(sigmas))
    for name, sigmas in _named_sigmas(k, 56).items()
  ]
  gaussian = np.linalg.svd(
    np.random.default_rng(k).standard_normal((56, 56)), compute_uv=False
  )
  found.append(Spectrum('gaussian', 56, 56, k, _descending(gaussian)))
  decay = 0.9 ** np.arange(300)
  for name, rows, cols in [
    ('tall', 300, 40),
    ('wide', 40, 300),
    ('thin', 400, 6),
    ('row', 1, 64),
    ('column', 64, 1),
    ('scalar', 1, 1),
  ]:
    found.append(Spectrum(name, rows, cols, k, _descending(decay[: min(rows, cols)])))
  return found


def _named_sigmas(k: int, r: int) -> dict[str, np.ndarray]:
  j = np.arange(r)
  tail = 0.97 ** (j - k)
  named = {
    'flat': 1.0 - 0.1 * j / r,
    'geometric': 0.8**j,
    'strong_head': np.where(j < k, 20.0 - j, tail),
    'tiny': 1e-7 * 0.8**j,  # the size of updates by reinforcement learning
    'rank_below_k': 0.7**j * (j < k - 1),
    'rank_k': 0.7**j * (j < k),
    'rank_above_k': 0.7**j * (j < k + 2),
    'zero': np.zeros(r),
    'tie_inside_head': np.where(j < k, 1.0, 0.8 * tail),
    'tie_below_head': np.where(
      j < k, 1.2 ** (k - 1 - j), 0.99 * np.where(j < k + 3, 1, tail)
    ),
  }
  above = 1.1 ** (k - 1 - j)  # sigma_k = 1, the head's others well apart
  for gap in GAPS:
    named[f'near_tie_{gap:g}'] = np.where(j < k, above, (1.0 - gap) * tail)
  return named


def _descending(sigmas: np.ndarray) -> tuple[float, ...]:
  assert np.all(np.diff(sigmas) <= 0)
  return tuple(sigmas.tolist())


ALL = [spectrum for k in range(1, 9) for spectrum in spectra(k)]
