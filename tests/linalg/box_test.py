"""The minimum in a box: against every face in float64, and by its conditions."""

import functools
import itertools

import jax
import numpy as np
import pytest

from resmerge_jax.linalg.box import minimum_in_box, slack
from tests.methods.groups import compiled
from tests.oracles.retention import lowest_in_box

solve = compiled(
  jax.vmap(
    lambda a_NxN, c_N, most_N: (
      x_N := minimum_in_box(a_NxN, c_N, most_N),
      slack(a_NxN, c_N, most_N, x_N),
    )
  )
)
CASES = 60


@functools.cache
def problems(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A BxNxN, c BxN, most BxN: cosines of all ranks and signs, boxes of all sizes."""
  rng = np.random.default_rng(n)
  a_BxNxN, c_BxN, most_BxN = [], [], []
  kinds = itertools.cycle(itertools.product((0, 1, 5), (0.0, 0.5, 3.0), (0.01, 0.4)))
  for (likeness, spread, ridge), _ in zip(kinds, range(CASES), strict=False):
    x_NxD = rng.standard_normal((n, rng.integers(1, 2 * n + 1)))
    x_NxD += likeness * rng.standard_normal(x_NxD.shape[1])
    x_NxD *= rng.choice([-1, 1], (n, 1), p=[0.2, 0.8])
    x_NxD /= np.linalg.norm(x_NxD, axis=1, keepdims=True)
    size_N = np.exp(spread * rng.standard_normal(n))
    a_BxNxN.append(x_NxD @ x_NxD.T + ridge * np.eye(n))
    c_BxN.append(rng.uniform(-0.2, 1.0, n))
    most_BxN.append(size_N / size_N.max())
    if rng.random() < 0.2:
      most_BxN[-1][0] = 0.0
  return np.float32(a_BxNxN), np.float32(c_BxN), np.float32(most_BxN)


@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_agrees_with_the_best_of_all_faces(n: int):
  a_BxNxN, c_BxN, most_BxN = problems(n)
  x_BxN, slack_B = solve(a_BxNxN, c_BxN, most_BxN)
  for a_NxN, c_N, most_N, x_N in zip(a_BxNxN, c_BxN, most_BxN, x_BxN, strict=True):
    want_N = lowest_in_box(*(np.float64(v) for v in (a_NxN, c_N, most_N)))
    # Rounding of a float32 slope, over the least eigenvalue.
    least = np.linalg.eigvalsh(a_NxN)[0]
    np.testing.assert_allclose(x_N, want_N, atol=2e-6 * (1 + n / 10) / min(least, 1))
  assert slack_B.max() <= 2e-6


@pytest.mark.parametrize('n', [8, 16])
def test_many_unknowns_meet_the_conditions_of_a_minimum(n: int):
  """They are sufficient; measured in float64, as is what the program says of itself."""
  a_BxNxN, c_BxN, most_BxN = (np.float64(v) for v in problems(n))
  x_BxN, slack_B = (np.float64(v) for v in solve(*problems(n)))
  assert (x_BxN >= 0).all()
  assert (x_BxN <= most_BxN).all()
  slope_BxN = np.einsum('bnm,bm->bn', a_BxNxN, x_BxN) - c_BxN
  step_BxN = np.clip(x_BxN - slope_BxN, 0, most_BxN) - x_BxN
  want_B = np.abs(step_BxN).max(1)
  assert want_B.max() <= 3e-6  # sums of 16 float32 terms
  np.testing.assert_allclose(slack_B, want_B, atol=1e-6)


def test_bounds_are_met_exactly():
  x_BxN, _ = solve(
    np.eye(2, dtype=np.float32)[None],
    np.float32([[-1.0, 3.0]]),
    np.float32([[0.7, 0.3]]),
  )
  np.testing.assert_array_equal(x_BxN, np.float32([[0.0, 0.3]]))


def test_a_stack_gives_what_each_gives():
  """Also where others need more faces."""
  a_BxNxN, c_BxN, most_BxN = problems(5)
  all_BxN, _ = solve(a_BxNxN, c_BxN, most_BxN)
  for b in range(0, CASES, 7):
    one = slice(b, b + 1)
    alone_BxN, _ = solve(*(v[one].repeat(CASES, 0) for v in problems(5)))
    np.testing.assert_array_equal(alone_BxN[0], all_BxN[b])
