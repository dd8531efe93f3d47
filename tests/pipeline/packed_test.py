"""Small arrays as one: every bit comes back, from one matrix and from a stack of them."""

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.pipeline.packed import SMALL, Packed, pack, unpack


def tree(seed: int, wide: bool = False) -> dict:
  rng = np.random.default_rng(seed)
  return {
    'float': rng.standard_normal((2, 3)).astype(np.float32),
    'bits': np.float32([np.nan, -0.0, np.inf, 1e-45]),  # subnormal numbers too
    'count': np.int32([-1, 2**31 - 1]),
    'flag': np.array([True, False, True]),
    'one': np.float32(seed),
    'none': None,
    'wide': np.float64([1 / 3, seed]) if wide else {},
    'large': rng.standard_normal(SMALL + 1).astype(np.float32),
  }


def assert_same(got: dict, trees: list[dict]) -> None:
  want = jax.tree.map(lambda *values: np.stack(values), *trees)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for value, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
    assert np.asarray(value).tobytes() == expected.tobytes()


def test_every_bit_comes_back():
  trees = [tree(seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *values: jnp.asarray(np.stack(values)), *trees)
  packed = jax.jit(jax.vmap(pack))(stacked)
  assert isinstance(packed, Packed)
  assert [x.shape for x in jax.tree.leaves(packed)] == [(3, SMALL + 1), (3, 16)]
  assert_same(unpack(jax.device_get(packed)), trees)


def test_float64_numbers_come_back():
  with jax.enable_x64(True):
    trees = [tree(seed, wide=True) for seed in range(2)]
    stacked = jax.tree.map(lambda *values: jnp.asarray(np.stack(values)), *trees)
    packed = jax.device_get(jax.jit(lambda x: jax.lax.map(pack, x))(stacked))
  assert_same(unpack(packed), trees)


def test_a_tree_without_small_arrays():
  packed = jax.jit(jax.vmap(lambda x: pack({'large': x})))(jnp.zeros((2, SMALL + 1)))
  assert packed.small_S.shape == (2, 0)
  assert unpack(jax.device_get(packed))['large'].shape == (2, SMALL + 1)
