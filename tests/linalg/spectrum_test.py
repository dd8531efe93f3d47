"""Spectra from Gram matrices, and when they are not good enough."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.linalg.short_side import Blocks
from resmerge_jax.linalg.spectrum import (
  MAX_ERROR,
  Spectrum,
  between_polars,
  spectrum,
)
from resmerge_jax.linalg.task_vectors import TaskVectors
from tests.oracles.spectral import polar

ROWS, COLS = 30, 8


def matrix(smallest: float, seed: int = 0) -> np.ndarray:
  """Singular values from 1 down to `smallest`, evenly on a logarithmic scale."""
  rng = np.random.default_rng(seed)
  u, v = (np.linalg.qr(rng.standard_normal((r, COLS)))[0] for r in (ROWS, COLS))
  sigma = np.geomspace(1.0, smallest, COLS) if smallest else np.eye(COLS)[0] + 0.0
  return (u * sigma) @ v.T


@functools.cache
def program(count: int) -> Any:
  return jax.jit(lambda x: spectrum(x.T @ x, lambda: x, count))


def found(x: np.ndarray, count: int = COLS) -> Spectrum:
  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, program(count)(x))


def polar_error(x: np.ndarray) -> tuple[float, float]:
  """Of the polar factor, and what the spectrum estimates."""
  result = found(x)
  error = np.linalg.norm(x @ result.inverse_root - polar(x)) / COLS**0.5
  return float(error), float(result.error)


@pytest.mark.parametrize('smallest', [0.1, 1e-3, 1e-4, 3e-5, 1e-6, 1e-8, 1e-9])
def test_the_estimate_holds(smallest: float):
  errors = [polar_error(matrix(smallest, seed)) for seed in range(10)]
  # The estimate has no constant for the sum of roundings; measured: at most 1.2.
  assert all(error <= 3 * estimate + 1e-14 for error, estimate in errors)
  assert max(error for error, _ in errors) < 2 * MAX_ERROR


def test_leading_directions_do_not_need_the_svd():
  x = matrix(1e-9)
  few, whole = found(x, 2), found(x)
  u, sigma, _ = np.linalg.svd(x, full_matrices=False)
  assert few.error < 1e-12 < whole.error < MAX_ERROR
  np.testing.assert_allclose(few.sigma_M, sigma[:2])
  np.testing.assert_allclose(abs(np.sum((x @ few.to_left) * u[:, :2], 0)), 1.0)
  np.testing.assert_allclose(whole.sigma_M, sigma, rtol=1e-6)  # 1e-16 of the largest
  assert few.complete
  assert whole.complete


def test_missing_directions_are_left_out():
  x = matrix(0.0)
  result = found(x)
  assert not result.complete
  np.testing.assert_array_equal(result.inverse_M[1:], 0.0)
  np.testing.assert_array_equal(result.v_SxM[:, 1:], 0.0)
  np.testing.assert_allclose(x @ result.inverse_root, x, atol=1e-14)  # sigma is 1


def test_zeros():
  result = found(np.zeros((ROWS, COLS)))
  assert result.error == 0.0
  assert not result.complete
  assert all(np.isfinite(field).all() for field in result)
  np.testing.assert_array_equal(result.inverse_root, 0.0)


@pytest.mark.parametrize('repeated', [False, True])
def test_between_polars(repeated: bool):
  rng = np.random.default_rng(0)
  to_long, short = rng.standard_normal((2, COLS, 6))
  sigma = rng.uniform(1, 2, 6)
  if repeated:
    to_long[:, 1], short[:, 1] = to_long[:, 0], short[:, 0]
  x = np.float32(rng.standard_normal((1, ROWS, COLS)))

  def long(x_NxBxS: jax.Array) -> jax.Array:
    return x_NxBxS[0] @ to_long

  with jax.enable_x64(True):
    blocks = Blocks(TaskVectors(jnp.zeros((ROWS, COLS), jnp.float32), jnp.asarray(x)))
    results = jax.jit(
      lambda: between_polars(blocks, long, short, sigma, jnp.float64(0), jnp.inf)
    )()
    got, error, full_rank = jax.tree.map(np.asarray, results)
  assert full_rank == (not repeated)
  if repeated:  # polar factor of least norm: from the non-zero singular triplets
    p, q = (least_polar(side) for side in (x[0] @ to_long, short))
  else:
    p, q = polar(x[0] @ to_long), polar(short)
  np.testing.assert_allclose(got, (p * sigma) @ q.T, atol=1e-6)
  assert error < 1e-12


@pytest.mark.parametrize('settled', [(2, 0), (0, 2)])
def test_settled_columns_stay(settled: tuple[int, int]):
  rng = np.random.default_rng(1)
  x = np.float32(rng.standard_normal((1, ROWS, COLS)))
  sides = []
  for count, frame in zip(settled, (np.linalg.qr(x[0])[1], np.eye(COLS)), strict=True):
    columns = np.linalg.qr(rng.standard_normal((COLS, 6)))[0]
    free = 6 - count
    columns[:, :free] = columns[:, :free] @ rng.standard_normal((free, free))
    sides.append(np.linalg.solve(frame, columns))
  to_long, short = sides
  sigma = rng.uniform(1, 2, 6)
  with jax.enable_x64(True):
    blocks = Blocks(TaskVectors(jnp.zeros((ROWS, COLS), jnp.float32), jnp.asarray(x)))
    results = jax.jit(
      lambda: between_polars(
        blocks, lambda x_NxBxS: x_NxBxS[0] @ to_long, short, sigma,
        jnp.float64(0), jnp.inf, settled,
      )
    )()  # fmt: skip
    got, error, full_rank = jax.tree.map(np.asarray, results)
  np.testing.assert_allclose(
    got, (polar(x[0] @ to_long) * sigma) @ polar(short).T, atol=1e-6
  )  # float32
  assert full_rank
  assert error < 1e-12


def least_polar(x: np.ndarray) -> np.ndarray:
  u, sigma, vt = np.linalg.svd(x, full_matrices=False)
  return (u * (sigma > 1e-9)) @ vt
