"""Plans for TPUs: programs really compiled by libtpu, for topologies nobody has."""

import dataclasses
import json
import platform
import sys

import jax
import numpy as np
import pytest

from resmerge_jax.cli import plan
from resmerge_jax.linalg.head import block_size
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.pipeline import topology
from resmerge_jax.pipeline.ahead import Program
from resmerge_jax.pipeline.chips import CHIPS
from resmerge_jax.pipeline.hlo import Collective
from resmerge_jax.pipeline.kernel_spec import KernelSpec
from resmerge_jax.plan import accelerators
from resmerge_jax.sharding import MIN_ROWS
from resmerge_jax.synthetic import SHAPES, ModelShape
from tests import commands, folders, groups
from tests.cli.merge_test import assert_refused, flags_of

ON_V5E = '--topology=v5e:2x2'
needs_libtpu = pytest.mark.skipif(
  (sys.platform, platform.machine()) != ('linux', 'x86_64'),
  reason='libtpu is made for Linux on x86-64 only',
)


def weights(seed: int) -> dict[str, np.ndarray]:
  """Matrices of two kinds: rows shared by two devices of four; one per device, thin."""
  names = [f'model.layers.{i}.mlp.up_proj.weight' for i in range(2)]
  wide = np.zeros((2 * MIN_ROWS, 80), np.float32)
  thin = {f'model.layers.{i}.self_attn.q_proj.weight': (20, 16) for i in range(3)}
  return {
    **folders.tensors(seed),
    **dict.fromkeys(names, wide.astype(groups.BF16)),
    **{name: np.zeros(shape, groups.BF16) for name, shape in thin.items()},
  }


@needs_libtpu
def test_compiles_for_a_topology(tmp_path):
  """One program with the solver on 2x2 devices, one of layers apart, as JSON."""
  group = groups.write(tmp_path, weights(0), [weights(1), weights(2)])
  done = commands.run(plan, *flags_of(group, tmp_path / 'out'), ON_V5E, '--json')
  assert done.status == 0, done.err
  assert 'compiling 2 x [512, 80] ffn (model.layers.{0..1}.mlp.up_proj' in done.err
  found = json.loads(done.out)['compiled']
  assert (found['topology'], found['chips'], found['fits']) == ('v5e:2x2', 4, True)
  assert found['memory_bytes'] == CHIPS['v5e'].memory
  programs = {p['program'].split(' (')[0]: p for p in found['programs']}

  apart = programs['3 x [20, 16] attention']
  assert apart['mesh'] == {'layer': 4, 'row': 1}
  assert apart['padded_shape'] == [4, 20, 16]
  assert apart['collectives'] == []  # not even the end of a loop is shared

  shared = programs['2 x [512, 80] ffn']
  assert shared['mesh'] == {'layer': 2, 'row': 2}
  moved = {'solver step': [], 'solver cycle': [], 'once': []}
  for collective in shared['collectives']:
    moved[collective['where']].append(collective['bytes'])
  ops = [c['op'] for c in shared['collectives'] if c['op'] != 'all-reduce']
  assert ops == ['all-gather']  # left vectors of the heads, for whoever reads them
  block_bytes = 4 * 2 * block_size(1) * 80  # float32, of two experts
  turn_bytes = 4 * 2 * block_size(1) ** 2
  assert moved['solver step'] == [turn_bytes, block_bytes]
  assert moved['solver cycle'] == []
  assert max(moved['once']) <= max(block_bytes + 100, 4 * 2 * 2 * MIN_ROWS)
  stored = 3 * 2 * MIN_ROWS * 80
  assert stored <= shared['argument_bytes'] < 2 * stored + 2**14
  assert shared['peak_memory_bytes'] > shared['argument_bytes']
  seconds = found['seconds_estimate']
  assert 0 < seconds['settled'] < seconds['at_most'] < 1e-3


@needs_libtpu
def test_a_published_shape_needs_no_folder():
  done = commands.run(plan, '--shape=tiny', ON_V5E, '--method=task_arithmetic')
  assert done.status == 0, done.err
  lines = [' '.join(line.split()) for line in done.out.splitlines()]
  assert 'base tiny: 50 tensors, 1.63 MiB' in lines
  assert (
    '8 x [384, 128] ffn BF16 -> BF16 step 8 x 384 model.layers.{0..3}.mlp.gate_proj'
    '.weight, model.layers.{0..3}.mlp.up_proj.weight'
  ) in [line.replace('method ffn', 'ffn') for line in lines]
  assert (
    'v5e:2x2: 4 chips with 15.8 GiB each, processes: 1; of one chip in one step:'
  ) in lines
  embedding = next(
    line for line in lines if line.startswith('1 x [512, 128] task_arithmetic (')
  )
  assert ' 1 2x2 2x512x128 ' in embedding  # two devices have enough; the others padding
  row = next(line for line in lines if line.startswith('4 x [128, 384] task_arith'))
  assert ' 1 4x1 4x128x384 384 KiB ' in row
  assert ' none ' in row
  assert (
    'estimates are bytes and operations over published speeds; nothing was run'
    in (lines)
  )


@needs_libtpu
def test_what_does_not_fit_is_an_error(monkeypatch):
  large = ModelShape('llama', 8192, 8, 1, 1, 1, 8, 2**20, True)
  monkeypatch.setitem(SHAPES, 'large', large)
  monkeypatch.setattr(accelerators, 'SHARE', 100.0)
  monkeypatch.setattr(accelerators, 'STEP_BYTES', 2**50)
  done = commands.run(plan, '--shape=large', ON_V5E, '--method=task_arithmetic')
  assert done.status == 1
  assert 'steps that fit: estimate ' in done.out
  message = done.err[done.err.index('error: ') :]
  assert message.startswith(
    'error: 1 of 5 programs do not fit in the 15.8 GiB of a chip of v5e:2x2\n'
    '  - 1 x [1048576, 8192] task_arithmetic (model.embed_tokens.weight): '
  )
  assert '20.00G' in message
  assert 'take more chips or chips with more memory' in message


@pytest.mark.parametrize(
  'name', ['v5litepod-8', 'v7x:2x2', 'v5e', 'v5e:8', 'v5e:0x2', 'v5e:2x2x2x2']
)
def test_names_that_are_no_topology(name: str):
  done = commands.run(plan, '--shape=tiny', f'--topology={name}')
  assert_refused(done, f'--topology={name}: expected VERSION:NxN or VERSION:NxNxN')
  assert 'one of v4, v5e, v5p, v6e' in done.err
  assert 'such as v4:2x2x2, v5e:2x4' in done.err


@needs_libtpu
def test_a_topology_that_libtpu_refuses():
  done = commands.run(plan, '--shape=tiny', '--topology=v5e:3x3')
  assert_refused(done, '--topology=v5e:3x3: libtpu knows no such topology: ')
  assert 'not divisible' in done.err


@needs_libtpu
def test_a_mesh_that_is_set():
  done = commands.run(plan, '--shape=tiny', ON_V5E, '--mesh=layer:4,row:2')
  assert_refused(done, 'mesh: got layer:4,row:2, which needs 8 devices; there are 4')
  done = commands.run(plan, '--shape=tiny', ON_V5E, '--mesh=layer:2')
  assert_refused(done, 'mesh: got layer:2,row:1, which is 2 of 4 TPUs')
  words = ('--method=task_arithmetic', '--mesh=layer:2,row:2', '--json')
  done = commands.run(plan, '--shape=tiny', ON_V5E, *words)
  programs = json.loads(done.out)['compiled']['programs']
  assert {tuple(p['mesh'].values()) for p in programs} == {(1, 4)}  # rows alone


def test_libtpu_is_told_how_to_install(monkeypatch):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda _: None)
  done = commands.run(plan, '--shape=tiny', ON_V5E)
  assert_refused(done, '--topology=v5e:2x2: libtpu is not installed')
  assert "pip install '.[aot]'" in done.err


def test_a_shape_stands_for_the_folders(tmp_path):
  done = commands.run(plan, '--shape=tiny', f'--base={tmp_path}')
  assert_refused(done, '--shape needs no folders', '--base')
  done = commands.run(plan, '--n_experts=2', '--base=b', '--experts=e', '--output=o')
  assert_refused(done, '--n_experts: only --shape needs to be told')
  done = commands.run(plan, '--shape=qwen3-30b-a3b', '--n_experts=2', '--json')
  found = json.loads(done.out)
  assert len(found['tensors']) == 2 + 1 + 48 * (2 + 4 + 2 + 1 + 3 * 128)
  assert found['bytes_read'] == 3 * 2 * 30_532_122_624


def test_estimate():
  """Bytes over the speed of memory; what crosses links on top."""
  spec = KernelSpec(ResMerge(), 'ffn', 2, 1024, 80, 3, 'BF16', 'BF16', 'BF16')
  once = Collective('all-reduce', 1000, 'once')
  step = Collective('all-reduce', 4000, 'solver step')
  program = Program(
    spec=spec, steps=(), mesh={'layer': 2, 'row': 4}, shape=(2, 1024, 80),
    compile_seconds=0.0, argument=0, output=3, peak=4, accessed=1e6, flops=0.0,
    collectives=(once, step),
  )  # fmt: skip
  assert (program.solver_steps(2), program.solver_steps(10)) == (5 + 1, 48)
  assert program.needed == 7
  assert program.link_bytes('solver step') == 6000  # 2 (n - 1) / n of them
  chip = dataclasses.replace(CHIPS['v5e'], memory_speed=1e9, link_speed=1e6)
  again = 5 * 2 * 4 * 3 * 1024 / 4 * 80  # five more steps, float32 read twice
  expected = (1e6 + again) / 1e9 + (1500 + 6 * 6000) / 1e6
  assert program.seconds(chip, 2) == pytest.approx(expected)
  slow = dataclasses.replace(chip, flops=1e6)
  products = 6 * 5 * 4 * block_size(1) * 3 * 1024 / 4 * 80
  assert program.seconds(slow, 2) == pytest.approx(products / 1e6 + 0.0375)
  large = dataclasses.replace(program, shape=(2, 2**17, 80))
  assert large.solver_steps(2) == 3 + 1  # from a sample of its rows
  thin = dataclasses.replace(program, spec=dataclasses.replace(spec, cols=64))
  assert thin.seconds(chip, 2) == pytest.approx(1e6 / 1e9 + (1500 + 6000) / 1e6)


def test_the_default_backend_stays():
  assert jax.default_backend() == 'cpu'
