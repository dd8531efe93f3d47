"""Stored bits as float32 and back, exactly."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.linalg.task_vectors import TaskVectors, narrow, widen

BITS = np.arange(2**16, dtype=np.uint16)
BF16 = BITS.view(ml_dtypes.bfloat16)


def test_every_bfloat16_is_widened_exactly():
  got = np.asarray(jax.jit(widen)(BITS))
  np.testing.assert_array_equal(got, BF16.astype(np.float32))


def test_rounding_is_that_of_bfloat16():
  """Every bfloat16 number, the ties above it, and their neighbours."""
  with np.errstate(over='ignore'):
    low = np.arange(2**16, dtype=np.uint32) << 16
    offsets = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    values = np.concatenate([low + offset for offset in offsets]).view(np.float32)
    values = values[~np.isnan(values)]
    want = values.astype(ml_dtypes.bfloat16)
  got = np.asarray(jax.jit(narrow, static_argnums=1)(values, np.dtype(np.uint16)))
  np.testing.assert_array_equal(got, want.view(np.uint16))


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_other_dtypes_are_converted(dtype: type):
  values = np.array([0.1, -2.5, 1e-7, 65504.0], np.float32)
  np.testing.assert_array_equal(narrow(values, np.dtype(dtype)), values.astype(dtype))
  np.testing.assert_array_equal(widen(values.astype(dtype)), values.astype(dtype))


def test_task_vectors_are_exact_differences():
  rng = np.random.default_rng(0)
  base_RxC = (0.02 * rng.standard_normal((5, 7))).astype(ml_dtypes.bfloat16)
  experts = (base_RxC + 1e-3 * rng.standard_normal((3, 5, 7))).astype(base_RxC.dtype)
  vectors = TaskVectors(
    jnp.asarray(base_RxC.view(np.uint16)), jnp.asarray(experts.view(np.uint16))
  )
  assert (len(vectors), vectors.shape) == (3, (5, 7))
  for i, delta_RxC in enumerate(vectors):
    want = experts[i].astype(np.float64) - base_RxC.astype(np.float64)
    assert delta_RxC.dtype == jnp.float32
    np.testing.assert_array_equal(delta_RxC, want)
  with pytest.raises(IndexError):
    vectors[3]
