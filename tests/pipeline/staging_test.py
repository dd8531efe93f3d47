"""Buffers of the loop: who waits for which, and what a plan counts of them."""

import concurrent.futures
import dataclasses

import pytest

from resmerge_jax.pipeline.staging import Staging
from resmerge_jax.plan.accelerators import Accelerators, Cpu
from resmerge_jax.plan.step_sizes import ALONE_BYTES, is_alone, peak_memory
from tests.plan.build_stacks_test import plan


def test_steps_that_are_alone_take_one_buffer_after_another():
  staging = Staging(2)
  first = staging.take(100, alone=True)
  beside = staging.take(10)  # another step has room beside it
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    second = pool.submit(staging.take, 50, alone=True)
    staging.give_back(beside)
    with pytest.raises(concurrent.futures.TimeoutError):
      second.result(timeout=0.2)
    staging.give_back(first)
    assert second.result() is first  # its pages are there already


def test_buffers_grow_and_are_reused():
  staging = Staging(1)
  small = staging.take(10)
  assert small.size == 10
  assert small.ctypes.data % 64 == 0
  staging.give_back(small)
  large = staging.take(1000)
  assert large.size == 1000
  staging.give_back(large)
  assert staging.take(500) is large


def test_the_end_of_a_run_ends_the_wait():
  staging = Staging(1)
  staging.take(10)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(staging.take, 10)
    staging.close()
    with pytest.raises(concurrent.futures.CancelledError):
      waiting.result()


def test_the_plan_counts_one_set_of_steps_that_are_alone():
  (large,) = [s for s in plan(whole=True).stacks if s.n_rows == 4864]
  large = dataclasses.replace(large, rows=large.n_rows, layers=8, reads_ahead=True)
  nbytes = large.layers * large.rows * large.row_bytes
  assert nbytes > ALONE_BYTES
  assert is_alone(large, nbytes, Cpu())
  assert not is_alone(large, ALONE_BYTES, Cpu())
  assert not is_alone(large, nbytes, Accelerators(8, 2**34, 1))
  waits = dataclasses.replace(large, reads_ahead=False)
  assert peak_memory([waits], Cpu()) - peak_memory([large], Cpu()) == nbytes
  # Beside it there may be a smaller one, the largest of those.
  small = dataclasses.replace(large, layers=1)
  n_small = small.rows * small.row_bytes
  assert peak_memory([large, small], Cpu()) - peak_memory([large], Cpu()) == n_small
