"""The plan command: what it prints, its JSON, and that it reads no weights."""

import json
import pathlib
import subprocess
import sys

import pytest

from resmerge_jax.checkpoint.reader import CheckpointReader
from resmerge_jax.cli import plan
from resmerge_jax.pipeline.manifest import identity_of
from resmerge_jax.pipeline.prepare import prepare
from resmerge_jax.writers.journal import Journal
from resmerge_jax.writers.partial import journal_path, partial_path
from tests import commands, folders, groups
from tests.cli.merge_test import assert_refused, flags_of

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  path = tmp_path_factory.mktemp('group')
  experts = [folders.tensors(1), folders.tensors(2)]
  return groups.write(path, folders.tensors(), experts, files={})


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
  def read(*_):
    raise AssertionError('a plan reads no weights')

  monkeypatch.setattr(CheckpointReader, 'read_into', read)


def test_text(group, tmp_path):
  done = commands.run(plan, *flags_of(group, tmp_path / 'out'))
  assert (done.status, done.err) == (0, '')
  lines = [' '.join(line.split()) for line in done.out.splitlines()]
  for line in (
    'base base: 8 tensors, 264 B',
    'expert e0: 264 B',
    '1 task_arithmetic embedding or LM head /embed_tokens|wte|lm_head|word_embeddings/',
    '3 task_arithmetic normalisation /norm|ln_|layernorm/',
    '4 method matrix',
    '2 attention method',
    '2 ffn method',
    '2 x [8, 4] method ffn BF16 -> BF16 step 2 x 8 '
    'model.layers.{0..1}.mlp.up_proj.weight',
    f'warning: base {group.base}: no tokenizer files',
  ):
    assert line in lines, done.out
  assert '792 B to read in 4 steps, 1.' in done.out
  assert ' to write in 1 files, safetensors, floating tensors as bfloat16\n' in done.out
  assert 'predicted peak memory 180 MiB, budget 2 GiB\n' in done.out
  assert not any(tmp_path.iterdir())


def test_json(group, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'old').touch()
  done = commands.run(
    plan,
    *flags_of(group, tmp_path / 'out'),
    '--json',
    '--overwrite',
    '--output_dtype=float32',
    '--max_shard_size=100',
  )
  assert (done.status, done.err) == (0, '')
  found = json.loads(done.out)
  assert set(found) == {
    'fingerprint', 'bytes_read', 'bytes_written', 'peak_memory_bytes',
    'memory_budget_bytes', 'n_steps', 'warnings', 'rules', 'stacks', 'files',
    'tensors', 'notes',
  }  # fmt: skip
  assert found['bytes_read'] == 3 * 264
  assert sum(rule['tensors'] for rule in found['rules']) == 8
  assert sum(len(stack['names']) for stack in found['stacks']) == 8
  assert sum(file['tensors'] for file in found['files']) == 8
  assert len(found['files']) > 1
  assert found['tensors']['model.norm.weight'] == {
    'rule': 'task_arithmetic',
    'file': found['files'][-1]['name'],
    'dtype': 'F32',
    'shape': [4],
  }
  assert f'base {group.base}: no tokenizer files' in found['warnings']
  assert found['notes'] == [
    f'{tmp_path}/out is replaced when the new output is complete (--overwrite)'
  ]


def test_fails_where_the_merge_would(group, tmp_path):
  done = commands.run(plan, *flags_of(group, group.base / 'sub'))
  assert_refused(done, f'the output lies inside {group.base}')
  done = commands.run(plan, *flags_of(group, tmp_path / 'out'), '--expert_ids=x,x')
  assert_refused(done, 'experts with equal ids')
  done = commands.run(plan, *flags_of(group, tmp_path / 'out'), '--memory_budget=1GX')
  assert_refused(done, "not a size: '1GX'")


def test_says_what_would_be_resumed(group, tmp_path):
  output = tmp_path / 'out'
  done = commands.run(plan, *flags_of(group, output), '--resume')
  assert (done.status, done.err) == (0, '')
  assert 'note: ' not in done.out
  identity = identity_of(
    prepare(groups.config_of(group, output, memory_budget='1GiB')).facts
  )
  partial_path(output).mkdir()
  Journal(
    journal_path(output),
    identity,
    [{'step': 0, 'rows': [0, 1], 'written': {}, 'numbers': None}],
    list,
  ).close()
  done = commands.run(plan, *flags_of(group, output), '--resume')
  assert_refused(done, 'config memory_budget: got nothing, expected 1073741824')
  done = commands.run(
    plan, *flags_of(group, output), '--resume', '--memory_budget=1GiB'
  )
  assert f' in {partial_path(output)}: continued\n' in done.out


def test_help_shows_the_flags_of_the_merge():
  done = commands.run(plan, '--help')
  assert (done.status, done.err) == (0, '')
  assert 'python -m tools.plan --base=BASE' in done.out
  for flag in ('[no]json', 'base', 'config', 'experts', 'output', 'memory_budget'):
    assert f'  --{flag}: ' in done.out, flag


def test_a_real_process_from_a_clone(group, tmp_path):
  command = [sys.executable, '-m', 'tools.plan', *flags_of(group, tmp_path / 'out')]
  done = subprocess.run(
    [*command, '--json'], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert json.loads(done.stdout)['n_steps'] == 4
  assert not (tmp_path / 'out').exists()
