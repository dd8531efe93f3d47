"""Weights on a sphere are those of vectors, from NumPy and JAX arrays alike."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.linalg.sphere import BRANCHES, arc, cosines, iterated_slerp
from tests.oracles import sphere as oracle


def vectors(n: int) -> np.ndarray:
  rng = np.random.default_rng(n)
  x_NxC = rng.standard_normal((n, 40)) + 0.5
  return x_NxC * rng.uniform(0.2, 3.0, (n, 1))


def gram(x_NxC: np.ndarray) -> np.ndarray:
  return x_NxC @ x_NxC.T


@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_iterated_slerp_on_the_host(n: int):
  x_NxC = vectors(n)
  weight_N, cos_M, branch = iterated_slerp(gram(x_NxC))
  assert weight_N.dtype == np.float64
  assert isinstance(cos_M, np.ndarray)
  assert (cos_M.shape, BRANCHES[branch]) == ((n - 1,), 'slerp')
  want = oracle.warp({'x': list(x_NxC)}, [['x']])['x']
  np.testing.assert_allclose(weight_N @ x_NxC, want, rtol=1e-9, atol=1e-12)


def test_iterated_slerp_on_a_device():
  gram_NxN = gram(vectors(4))
  want_N, want_cos_M, _ = iterated_slerp(gram_NxN)
  weight_N, cos_M, branch = iterated_slerp(jnp.asarray(gram_NxN, jnp.float32))
  assert (weight_N.dtype, branch.dtype) == (jnp.float32, jnp.int32)
  np.testing.assert_allclose(weight_N, want_N, rtol=1e-5)  # a chain of float32
  np.testing.assert_allclose(cos_M, want_cos_M, rtol=1e-5)


def test_three_orthogonal_vectors_of_equal_length():
  weight_N, _, _ = iterated_slerp(np.eye(3))
  third = math.sin(math.pi / 3)  # the third joins at a third of a right angle
  want = [third * math.sqrt(0.5)] * 2 + [0.5]
  np.testing.assert_allclose(weight_N, want, atol=1e-15)
  assert np.linalg.norm(weight_N) == pytest.approx(1.0)  # norms are kept


@pytest.mark.parametrize(
  ('other', 'want', 'branch'),
  [
    ([2.0, 0.0], [0.5, 0.5], 'lerp'),
    ([0.0, 0.0], [0.5, 0.5], 'lerp'),
    ([-2.0, 0.0], [0.5, 0.5], 'opposite'),
    ([-2.0, 1e-4], [0.5, 0.5], 'opposite'),
    ([0.0, 1.0], [0.5**0.5] * 2, 'slerp'),
  ],
)
def test_limits_of_the_angle(other: list, want: list, branch: str):
  weight_N, _, code = iterated_slerp(gram(np.array([[1.0, 0.0], other])))
  np.testing.assert_allclose(weight_N, want, atol=1e-15)
  assert BRANCHES[code] == branch


def test_excess_is_the_sum_of_the_weights_less_one():
  t = np.array([-0.5, 0.0, 0.2, 0.5, 1.0, 1.3])[:, None]
  first, second, excess = arc(t, np.cos([0.02, 0.5, 1.6, 3.0]), False)
  np.testing.assert_allclose(excess, first + second - 1, atol=1e-12)
  np.testing.assert_array_equal(arc(t, np.array(1.0), True).excess, 0.0)


def test_cosines_of_lengths_at_the_ends_of_float32():
  x_NxC = np.array([[1e-18, 0], [1e18, 1e18], [0, 0]], np.float32)
  got = cosines(jnp.asarray(gram(x_NxC)))
  want = np.array([[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 0]])
  np.testing.assert_allclose(got, want, rtol=1e-6)
