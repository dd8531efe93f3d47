"""Differences of checkpoints against plain numpy in float64, and at the edges."""

import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.checkpoint import difference
from resmerge_jax.checkpoint.difference import (
  BlockDifference,
  bf16_unit,
  block_difference,
  compare_checkpoints,
  row_blocks,
  widen,
)
from resmerge_jax.checkpoint.memory import MemoryReader, memory_checkpoint
from resmerge_jax.types import TensorRef

BF16 = ml_dtypes.bfloat16


def normal(shape, dtype=np.float32, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def compare(a, b):
  return {
    found.name: found
    for found in compare_checkpoints(
      memory_checkpoint(a, 'a'),
      memory_checkpoint(b, 'b'),
      MemoryReader(a, 'a'),
      MemoryReader(b, 'b'),
    )
  }


@pytest.mark.parametrize('dtype', [BF16, np.float16, np.float32, np.float64])
def test_against_numpy(dtype):
  a = normal(1000, dtype)
  b = a.copy()
  b[::7] = normal(143, dtype, seed=1)
  found = block_difference(a, b)
  exact_a, exact_b = a.astype(np.float64), b.astype(np.float64)
  gap = np.abs(exact_a - exact_b)
  assert (found.size, found.n_differ, found.n_nan) == (1000, np.sum(a != b), 0)
  assert not found.same_bytes
  assert found.share_differ == np.mean(a != b)
  assert found.max_abs == gap.max()
  expected = np.linalg.norm(gap) / np.linalg.norm(exact_a)
  np.testing.assert_allclose(found.relative, expected, rtol=1e-12)


@pytest.mark.parametrize('dtype', [BF16, np.float16, np.float32, np.float64, np.int32])
def test_widen_is_exact(dtype):
  values = normal(64, np.float64).astype(dtype)
  np.testing.assert_array_equal(
    widen(values).astype(np.float64), values.astype(np.float64)
  )


def test_bf16_unit_is_the_next_number():
  edges = [0, 2.0**-133, 2.0**-126, 0.99, 1, 1.5, 2, 255, 2.0**100]
  magnitudes = np.array(edges).astype(BF16)
  after = np.nextafter(magnitudes, BF16(np.inf))
  gaps = after.astype(np.float64) - magnitudes.astype(np.float64)
  np.testing.assert_array_equal(bf16_unit(magnitudes.astype(np.float64)), gaps)
  assert bf16_unit(np.array([np.inf, 1e300])).tolist() == [2.0**120] * 2


def test_bf16_units_of_neighbours():
  a = np.array([1, -2, 0], BF16)
  b = np.nextafter(a, BF16(np.inf))
  assert block_difference(a[:1], b[:1]).max_bf16_units == 1
  assert (
    block_difference(a[1:2], b[1:2]).max_bf16_units == 0.5
  )  # towards the finer side
  assert block_difference(a[2:], b[2:]).max_bf16_units == 1


def test_nan_and_inf():
  nan, inf = np.nan, np.inf
  a = np.float32([nan, nan, 1, inf, inf, inf, 2])
  b = np.float32([nan, 1, nan, inf, -inf, 5, 2])
  found = block_difference(a, b)
  assert (found.n_differ, found.n_nan) == (4, 2)
  assert found.max_abs == found.max_bf16_units == found.relative == inf
  found = block_difference(a[:3], b[:3])
  assert (found.n_differ, found.n_nan, found.max_abs, found.relative) == (2, 2, 0, 0)


def test_equal_values_of_other_bytes():
  found = block_difference(np.float32([0.0, 1]), np.float32([-0.0, 1]))
  assert (found.same_bytes, found.n_differ) == (False, 0)
  assert not block_difference(np.ones(3, BF16), np.ones(3, np.float32)).same_bytes
  same = block_difference(np.float32([np.nan]), np.float32([np.nan]))
  assert (same.same_bytes, same.n_differ) == (True, 0)


def test_zero_against_something():
  assert block_difference(np.zeros(2), np.ones(2)).relative == np.inf
  assert block_difference(np.zeros(2), -np.zeros(2)).relative == 0
  assert BlockDifference().share_differ == BlockDifference().relative == 0


def test_integers_beyond_float64():
  a = np.array([2**60, 5], np.int64)
  assert block_difference(a, a + np.array([1, 0])).n_differ == 1
  assert block_difference(np.array([True]), np.array([False])).n_differ == 1


def test_blocks_and_parts_do_not_change_the_result(monkeypatch):
  a = {'w': normal((50, 7), BF16), 'v': normal(9, BF16), 'x': normal((3, 4, 5))}
  b = {name: (array * 1.01).astype(array.dtype) for name, array in a.items()}
  whole = compare(a, b)
  monkeypatch.setattr(difference, 'BLOCK_BYTES', 100)
  monkeypatch.setattr(difference, '_PART', 4)
  parts = compare(a, b)
  for name, found in whole.items():
    got, expected = parts[name].values, found.values
    assert got.n_differ == expected.n_differ
    assert got.max_abs == expected.max_abs > 0
    np.testing.assert_allclose(got.relative, expected.relative, rtol=1e-12)


def test_row_blocks_are_bounded_and_cover():
  ref = TensorRef('w', 'BF16', (100_000, 4096))
  blocks = list(row_blocks(ref, TensorRef('w', 'F32', (100_000, 4096))))
  assert blocks[0] == (0, 4096)
  assert [stop for _, stop in blocks][:-1] == [start for start, _ in blocks][1:]
  assert blocks[-1][1] == 100_000
  assert list(row_blocks(*[TensorRef('e', 'F32', (0, 4))] * 2)) == []


def test_checkpoints():
  a = {'same': normal(3), 'near': normal((2, 2)), 'only_a': normal(1)}
  a |= {'shape': normal(3), 'kind': normal(2)}
  b = {**a, 'near': a['near'] + 1, 'only_b': normal(1)}
  b |= {'shape': normal(4), 'kind': np.zeros(2, np.int32)}
  del b['only_a']
  found = compare(a, b)
  assert list(found) == [*a, 'only_b']
  assert [name for name, item in found.items() if item.is_equal] == ['same']
  assert found['near'].values.n_differ == 4
  assert found['only_a'].b is None
  assert found['only_b'].a is None
  for name in ('only_a', 'only_b', 'shape', 'kind'):
    assert found[name].values is None
