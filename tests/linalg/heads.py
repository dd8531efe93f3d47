"""Heads of many matrices at once, their truth by LAPACK, and larger test matrices."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.linalg import krylov, passes
from resmerge_jax.linalg.head import Head, block_size, head_of
from resmerge_jax.linalg.krylov import ritz_pairs, top_ks
from resmerge_jax.linalg.orthonormal import total_square
from resmerge_jax.linalg.passes import InBlocks
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.pipeline.kernels import CPU_OPTIONS, random_start
from tests.spectra import GAPS, spectrum_matrix

# Ways of the solver: as shapes choose them, small ones here; as for large ones, from a
# sample of rows; and as for those with many entries, also formed block by block.
WAYS = ('as_small', 'sampled', 'in_blocks')


def solver(ks: tuple[int, ...], way: str = 'as_small') -> Callable:
  """top_ks of one matrix, as `way` says."""

  def in_blocks(delta_RxC: jax.Array, start_PxC: jax.Array) -> tuple[Head, ...]:
    zero_RxC = jnp.zeros_like(delta_RxC)
    stored = TaskVectors(zero_RxC, jnp.stack([zero_RxC, delta_RxC]), True)
    energy = total_square(delta_RxC)
    ritz = ritz_pairs(InBlocks.of(stored, jnp.int32(1)), ks, start_PxC, energy)
    return tuple(head_of(ritz, k, min(delta_RxC.shape), energy) for k in ks)

  def traced(delta_RxC: jax.Array, start_PxC: jax.Array) -> tuple[Head, ...]:
    with pytest.MonkeyPatch.context() as patch:
      if way != 'as_small':
        patch.setattr(krylov, 'LARGE', 0)
      # The last of these blocks repeats rows where there are 300 or 150.
      patch.setattr(passes, 'BLOCK_BYTES', delta_RxC.nbytes // 7)
      if way == 'in_blocks':
        return in_blocks(delta_RxC, start_PxC)
      return top_ks(delta_RxC, ks, start_PxC)

  return traced


@functools.cache
def compiled(k: int, way: str = 'as_small'):
  """top_k of one matrix, compiled as the pipeline compiles it."""
  solve_all = solver((k,), way)
  return jax.jit(lambda d, start: solve_all(d, start)[0], compiler_options=CPU_OPTIONS)


def start(k: int, cols: int, seed: int = 0) -> np.ndarray:
  return random_start(1000 * seed + k, (block_size(k), cols)).copy()


def solve(delta_BxRxC: np.ndarray, k: int, way: str = 'as_small') -> Head:
  """Heads of several matrices, one after the other, stacked on the host."""
  k = min(k, *delta_BxRxC.shape[1:])
  start_PxC = start(k, delta_BxRxC.shape[2])
  found = [jax.device_get(compiled(k, way)(d, start_PxC)) for d in delta_BxRxC]
  return jax.tree.map(lambda *fields: np.stack(fields), *found)


def product(y_KxR: np.ndarray, v_KxC: np.ndarray) -> np.ndarray:
  """The head as a matrix."""
  return y_KxR.astype(np.float64).T @ v_KxC.astype(np.float64)


def lapack(delta_RxC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """(H, all singular values) by a float64 SVD."""
  u, sigma, vt = np.linalg.svd(delta_RxC.astype(np.float64), full_matrices=False)
  return (u[:, :k] * sigma[:k]) @ vt[:k], sigma


def relative_gap(sigma: np.ndarray, k: int) -> float:
  """(sigma_k - sigma_k+1) / sigma_k, 1 where nothing is left beside the head."""
  at_k, below = (*sigma, *[0.0] * (k + 1))[k - 1 : k + 1]
  return 1.0 - below / at_k if at_k else 1.0


def distance(got: np.ndarray, want: np.ndarray) -> float:
  """Relative Frobenius error; a zero matrix must be met exactly."""
  size = np.linalg.norm(want)
  return float(np.linalg.norm(got - want) / size) if size else float(np.any(got))


def exact_tolerance(sigma: np.ndarray, k: int) -> float:
  """1e-9; triplets at round-off of float32 (1e-7 sigma_1) carry that of the Gram."""
  return 1e-9 if sigma[k - 1] > 1e-6 * sigma[0] else 3e-8


def larger(rows: int, cols: int, k: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Matrices whose short side exceeds THIN, so that the Krylov path solves them."""
  rng = np.random.default_rng([seed, rows, cols, k])
  j = np.arange(min(rows, cols))
  head = 1.1 ** (k - 1.0 - j)
  found = {
    'gaussian': rng.standard_normal((rows, cols), np.float32),
    'zero': np.zeros((rows, cols), np.float32),
  }
  spectra = {
    'geometric': 0.8**j,
    'power': (j + 1.0) ** -0.5,
    'strong_head': np.where(j < k, 20.0 - j, 0.97 ** (j - k)),
    'wide_range': np.where(j < k, 10.0 ** (-3 * j / k), 5e-4 * 0.9 ** (j - k)),
    'rank_below_k': 0.7**j * (j < k - 1),
    'rank_k': 0.7**j * (j < k),
    'rank_above_k': 0.7**j * (j < k + 2),
    'tie_inside_head': np.where(j < k, 1.0, 0.8 * 0.97 ** (j - k)),
    'tie_at_k': np.where(j < k + 1, 1.0, 0.8 * 0.97 ** (j - k)),
    'flat': 1.0 - 0.1 * j / len(j),
    'tiny': 1e-7 * 0.8**j,
  }
  # Inside the head, far below its first value: B x of a random x is mostly the first.
  for ratio in (7e-4, 5e-4, 3e-4):
    spectra[f'far_below_{ratio:g}'] = np.where(j < k, ratio ** (j > 0), 0.0)
  # A few strong directions over a floor: within a block of the solver the new
  # directions then differ a thousandfold in size, and none may be dropped.
  for terms, floor, decay in itertools.product((4, 6), (0.03, 0.01), (0.9, 0.7)):
    spectra[f'{k + terms}_terms_{decay}_on_{floor}'] = np.where(
      j < k + terms, decay**j, floor * decay ** (k + terms) * 0.99 ** (j - k - terms)
    )
  for gap in GAPS:
    spectra[f'near_tie_{gap:g}'] = np.where(j < k, head, (1 - gap) * 0.97 ** (j - k))
  for name, sigmas in spectra.items():
    found[name] = spectrum_matrix(rng, rows, cols, sigmas)
  return found
