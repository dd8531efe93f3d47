"""How many layers and rows a step has on accelerators."""

import dataclasses
import math

import pytest

from resmerge_jax.cli.shape_group import shape_group
from resmerge_jax.errors import InputError
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.plan.accelerators import (
  SHARE,
  STEP_BYTES,
  Accelerators,
  Cpu,
  RowBytes,
  step_shape,
)
from resmerge_jax.plan.plan import MergePlan, make_plan
from resmerge_jax.plan.rules import RELEASE_RULES
from resmerge_jax.plan.stacks import Chosen

GIB = 2**30
V5E_8 = Accelerators(count=8, bytes_each=16 * GIB, n_processes=2)
MIB_ROW = RowBytes(stored=2**20, device=4 * 2**20, host=3 * 2**20)


def shape(
  accelerators: Accelerators,
  layers: int,
  rows: int,
  whole_matrix: bool = True,
  host_room: float = math.inf,
  row: RowBytes = MIB_ROW,
) -> tuple[int, int]:
  return step_shape(
    accelerators, layers, rows, row, whole_matrix=whole_matrix, host_room=host_room
  )


@pytest.mark.parametrize(
  ('count', 'layers', 'rows', 'expected'),
  [
    (8, 28, 1, 32),  # all in one step, four on each device
    (32, 28, 1, 32),  # one on each, four devices idle
    (64, 28, 1, 32),  # two devices share one
    (8, 3, 1, 4),
    (8, 1, 1, 1),
    (8, 28, 256, 8),  # a matrix fills the wanted size: one on each device
    (8, 28, 128, 16),
    (8, 20, 100, 16),  # two steps, neither can be smaller
    (8, 25, 80, 16),  # 24 fit, but two steps of 16 do as well
    (8, 28, 2048, 8),  # more than wanted, in memory still
    (8, 28, 2049, 4),  # half the memory is exceeded: two devices share one
    (8, 28, 20000, 1),  # too large for all: compiling will tell
    (6, 5, 1, 6),
  ],
)
def test_layers_fill_the_devices(count: int, layers: int, rows: int, expected: int):
  accelerators = dataclasses.replace(V5E_8, count=count)
  assert shape(accelerators, layers, rows) == (expected, rows)


def test_constants_are_those_of_the_cases_above():
  assert SHARE * V5E_8.bytes_each == 2048 * MIB_ROW.device
  assert 256 * MIB_ROW.stored == STEP_BYTES


def test_independent_rows_are_cut():
  assert shape(V5E_8, 1, 2048, whole_matrix=False) == (1, 2048)
  assert shape(V5E_8, 1, 2049, whole_matrix=False) == (1, 1025)
  assert shape(V5E_8, 5, 64, whole_matrix=False) == (8, 64)


def test_a_host_with_little_memory_makes_steps_smaller():
  # 3 MiB a row, half of them on either host
  assert shape(V5E_8, 28, 256, host_room=8 * 256 * 3 / 2 * 2**20) == (8, 256)
  assert shape(V5E_8, 28, 256, host_room=4 * 256 * 3 / 2 * 2**20) == (4, 256)
  assert shape(V5E_8, 1, 900, whole_matrix=False, host_room=300 * 3 / 2 * 2**20) == (
    1,
    300,
  )


def test_a_mesh_that_is_set_is_filled_too():
  on_rows = dataclasses.replace(V5E_8, mesh=(2, 4))
  assert shape(on_rows, 3, 256) == (4, 256)
  assert shape(on_rows, 28, 1) == (28, 1)
  assert shape(on_rows, 28, 2048) == (8, 2048)


def plan(devices: Accelerators | Cpu, budget: int | None = None) -> MergePlan:
  return make_plan(
    shape_group('qwen2.5-7b', 3),
    RELEASE_RULES,
    choose=lambda rule, _: Chosen(
      ResMerge() if rule.action == 'method' else TaskArithmetic(),
      whole=rule.action == 'method',
    ),
    output_dtype='bfloat16',
    budget=budget,
    devices=devices,
  )


def test_steps_of_a_model():
  found = plan(V5E_8)
  steps = {(s.n_rows, s.n_cols): (s.layers, s.rows) for s in found.stacks}
  assert steps[18944, 3584] == (8, 18944)
  assert steps[512, 3584] == (56, 512)
  assert steps[152064, 3584] == (1, 50688)
  assert found.budget == found.peak_memory  # more than 2 GiB, and not the user's word
  one_process = plan(dataclasses.replace(V5E_8, n_processes=1))
  assert found.peak_memory < 0.55 * one_process.peak_memory


def test_memory_budget_counts_the_host_alone():
  floor = plan(V5E_8, 3 * GIB)
  assert floor.peak_memory <= 3 * GIB
  with pytest.raises(InputError, match='memory_budget: got 190 MiB, the largest mat'):
    plan(V5E_8, 190 * 2**20)
