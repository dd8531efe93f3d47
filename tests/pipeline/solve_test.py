"""Heads as the programs of merges solve them."""

import jax
import numpy as np
import pytest

from resmerge_jax.linalg.krylov import LARGE
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.pipeline.kernels import random_start
from resmerge_jax.pipeline.solve import Passes, solve_heads

PASSES = Passes(at_once=False, row_shards=1)


@pytest.mark.parametrize('large', [False, True], ids=['small', 'sampled'])
def test_heads_are_float32_in_programs_in_float64(
  large: bool, monkeypatch: pytest.MonkeyPatch
):
  monkeypatch.setattr('resmerge_jax.linalg.krylov.LARGE', 0 if large else LARGE)
  rng = np.random.default_rng(0)
  base_RxC = rng.standard_normal((90, 80), np.float32)
  delta_NxRxC = rng.standard_normal((2, 90, 80), np.float32)
  delta_NxRxC += 3 * np.linspace(1, 2, 80, dtype=np.float32)

  def heads(base_RxC: jax.Array, delta_NxRxC: jax.Array, start_PxC: jax.Array):
    delta = TaskVectors(base_RxC, delta_NxRxC, are_differences=True)
    return solve_heads((1,), PASSES, delta, start_PxC)

  arguments = base_RxC, delta_NxRxC, random_start(0, (4, 80))
  want = jax.jit(heads)(*arguments)
  with jax.enable_x64(True):
    got = jax.jit(heads)(*arguments)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)
  assert (want.heads[0].error < 1e-4).all()
