"""The merge command: flags, config files, user errors, help, and one real process."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from resmerge_jax.cli import merge
from tests import commands, folders, groups

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  path = tmp_path_factory.mktemp('group')
  experts = [folders.tensors(1), folders.tensors(2)]
  return groups.write(path, folders.tensors(), experts, torch_dtype='bfloat16')


def flags_of(group: groups.Group, output: pathlib.Path) -> list[str]:
  return [
    f'--base={group.base}',
    f'--experts={",".join(map(str, group.experts))}',
    f'--output={output}',
  ]


def run_merge(group, output, *args) -> dict[str, Any]:
  """Runs the command, which must succeed; returns the config it recorded."""
  done = commands.run(merge, *flags_of(group, output), *args)
  assert (done.status, done.err) == (0, ''), done
  return json.loads((output / 'manifest.json').read_text())['config']


def assert_refused(done: commands.Done, *texts: str) -> None:
  """One readable message that holds `texts`, and no traceback."""
  assert done.status == 1, done
  assert done.out == ''
  assert done.err.startswith('error: ')
  assert done.err.count('error: ') == 1
  assert 'Traceback' not in done.err
  for text in texts:
    assert text in done.err


def test_prints_what_was_done(group, tmp_path):
  output = tmp_path / 'out'
  done = commands.run(merge, *flags_of(group, output), '--method=task_arithmetic')
  assert (done.status, done.err) == (0, '')
  assert done.out.startswith(f'{output}: 2 experts merged by task_arithmetic in ')
  assert ' written as safetensors, bfloat16, peak memory ' in done.out
  assert len(done.out.splitlines()) == 1


def test_every_flag_reaches_the_config(group, tmp_path):
  config = run_merge(
    group,
    tmp_path / 'out',
    '--method=task_arithmetic',
    '--config.method.reduce=sum',
    '--expert_ids=math,code',
    '--weights=1,-0.5',
    '--output_dtype=float32',
    '--max_shard_size=1MB',
    '--memory_budget=2GiB',
    '--vocab=pad',
    '--extra=ignore',
    '--missing=base',
    '--overwrite',
    '--seed=3',
    '--mesh=row:8',
    '--save_recipe',
  )
  del config['rules']
  assert config == {
    'base': str(group.base),
    'experts': [str(path) for path in group.experts],
    'output': str(tmp_path / 'out'),
    'expert_ids': ['math', 'code'],
    'method': {'name': 'task_arithmetic', 'reduce': 'sum', 'scale': 1.0},
    'weights': [1.0, -0.5],
    'post': [],
    'output_dtype': 'float32',
    'max_shard_size': 10**6,
    'memory_budget': 2 * 2**30,
    'vocab': 'pad',
    'extra': 'ignore',
    'missing': 'base',
    'overwrite': True,
    'seed': 3,
    'mesh': [1, 8],
    'whole_files': False,
    'output_format': 'safetensors',
    'orbax_layout': 'hf',
    'save_recipe': True,
  }
  base, *experts = (groups.load(path) for path in (group.base, *group.experts))
  for name, got in groups.load(tmp_path / 'out').items():
    start = base[name].astype(np.float64)
    first, second = (expert[name].astype(np.float64) - start for expert in experts)
    np.testing.assert_allclose(got, start + first - second / 2, rtol=1e-6, atol=1e-6)
  records = groups.records(tmp_path / 'out')
  assert {record['rule'] for record in records} == {'method', 'task_arithmetic'}


def test_the_default_is_the_papers_resmerge_in_bfloat16(group, tmp_path):
  config = run_merge(group, tmp_path / 'out')
  assert config['method']['name'] == 'resmerge'
  assert config['method']['variant'] == 'paper'
  assert (config['output_dtype'], config['seed']) == ('bfloat16', 0)


def test_nested_fields_can_be_overridden(group, tmp_path):
  config = run_merge(
    group,
    tmp_path / 'out',
    '--config.method.family_scale.ffn=0.5',
    '--config.outside.scale=0.25',
  )
  assert dict(config['method']['family_scale'])['ffn'] == 0.5
  assert config['outside'] == {'reduce': 'mean', 'scale': 0.25}


CONFIG = """
import ml_collections
def get_config(text='0.25'):
  method = {'name': 'task_arithmetic', 'scale': float(text)}
  return ml_collections.ConfigDict({'method': method, 'output_dtype': 'float32'})
"""


@pytest.mark.parametrize(
  ('args', 'scale', 'dtype'),
  [
    (['--config={file}'], 0.25, 'float32'),
    (['--config', '{file}'], 0.25, 'float32'),
    (['--config={file}:4'], 4.0, 'float32'),
    (['--config={file}', '--config.method.scale=0.5'], 0.5, 'float32'),
    (['--config={file}', '--config.output_dtype=float16'], 0.25, 'float16'),
    (['--config={file}', '--output_dtype=bfloat16'], 0.25, 'bfloat16'),
    (['--config={file}', '--method=task_arithmetic'], 1.0, 'float32'),
    (['--config=task_arithmetic'], 1.0, 'bfloat16'),
    (['--method=task_arithmetic', '--config.method.scale=0.5'], 0.5, 'bfloat16'),
    (['--config.method.scale=0.5', '--method=task_arithmetic'], 0.5, 'bfloat16'),
  ],
)
def test_config_then_method_then_overrides_then_flags(
  group, tmp_path, args, scale, dtype
):
  file = tmp_path / 'mine.py'
  file.write_text(CONFIG)
  config = run_merge(group, tmp_path / 'out', *(a.format(file=file) for a in args))
  method = {'name': 'task_arithmetic', 'reduce': 'mean', 'scale': scale}
  assert (config['method'], config['output_dtype']) == (method, dtype)


def test_paths_in_a_config_file(group, tmp_path):
  file = tmp_path / 'mine.py'
  experts = [str(path) for path in group.experts]
  file.write_text(
    'import ml_collections\n'
    'def get_config():\n'
    f'  return ml_collections.ConfigDict(dict(base={str(group.base)!r}, '
    f'experts={experts!r}, output={str(tmp_path / "out")!r}, '
    "method=dict(name='task_arithmetic'), rules=[dict(match='norm', action='base'), "
    "dict(match='', action='method')]))\n"
  )
  done = commands.run(merge, f'--config={file}')
  assert (done.status, done.err) == (0, '')
  rules = {r['name']: r['rule'] for r in groups.records(tmp_path / 'out')}
  for name, rule in rules.items():
    assert rule == ('base' if 'norm' in name else 'method'), name


def test_sizes_are_checked_before_anything_is_read(group, tmp_path):
  done = commands.run(merge, *flags_of(group, tmp_path / 'out'), '--memory_budget=2XB')
  assert_refused(done, "not a size: '2XB'", "such as '2GiB' or '5GB'")
  done = commands.run(merge, *flags_of(group, tmp_path / 'out'), '--max_shard_size=0')
  assert_refused(done, "not a size: '0'")
  done = commands.run(merge, *flags_of(group, tmp_path / 'out'), '--memory_budget=1KB')
  assert_refused(done, 'memory_budget: got 1000 B, the largest matrix needs 180 MiB')


@pytest.mark.parametrize(
  ('args', 'texts'),
  [
    (
      ['--config.method.roh=0.3', '--config.metod.rho=0.3', '--config.sed=1'],
      [
        'unknown config field\n',
        "--config.method.roh: no field 'roh' (did you mean 'rho'?)",
        "--config.metod.rho: no field 'metod' (did you mean 'method'?)",
        "--config.sed: no field 'sed' (did you mean 'seed'?)",
      ],
    ),
    (['--config.method.rho=abc'], ['--config.method.rho=abc: could not convert']),
    (['--config.method.head_rank=1.5'], ['--config.method.head_rank=1.5: invalid']),
    (
      ['--config.method.rho=-1', '--config.method.head_rank=0'],
      ['1 <= head_rank <= 64: got 0\n', '0 <= rho, finite: got -1.0\n'],
    ),
    (
      ['--config.method.variant=papper'],
      ["variant: got 'papper', expected paper | release | release_initial"],
    ),
    (
      ['--method=resmrge'],
      ["unknown method 'resmrge'", "(did you mean 'resmerge'?)"],
    ),
    (['--method'], ['--method has no value']),
    (
      ['--config=resmerg'],
      ['no such file, and no bundled config of that name', "mean 'resmerge'?"],
    ),
    (['--config=resmerge:x'], ['fails: TypeError: get_config() takes 0 positional']),
    (['--nonsense=1'], ["Unknown command line flag 'nonsense'", 'Pass --help']),
    (['--output_dtype=int8'], ['value should be one of <base|bfloat16|float16|']),
    (['--vocab=trim'], ['value should be one of <error|base_rows|pad>']),
    (['--extra=drop'], ['value should be one of <error|ignore>']),
    (['--missing=zero'], ['value should be one of <error|base>']),
    (['--seed=x'], ["flag --seed=x: invalid literal for int() with base 10: 'x'"]),
    (['--seed=-1'], ['seed: got -1, expected 0 or more']),
    (['--expert_ids=a'], ['expert_ids: got 1 for 2 experts', 'give one per expert']),
    (
      ['--expert_ids=a,a'],
      ['experts with equal ids\n', "'a': ", 'name them: --expert_ids=math,code'],
    ),
    (['--weights=1,2'], ['weights: resmerge defines none']),
    (
      ['--method=task_arithmetic', '--weights=1,x'],
      ["weights: got 'x', expected a number"],
    ),
    (
      ['--method=task_arithmetic', '--weights=1,-1'],
      ['weights: [1.0, -1.0] sum to zero', "method.reduce='sum'"],
    ),
    (['--experts='], ['missing flags\n  - --experts\n']),
    (['stray', 'words'], ['unexpected arguments\n  - stray\n  - words\n']),
  ],
)
def test_user_errors_are_one_message(group, tmp_path, args, texts):
  done = commands.run(merge, *flags_of(group, tmp_path / 'out'), *args)
  assert_refused(done, *texts)
  assert not any(tmp_path.iterdir())


def test_missing_flags_are_named_together():
  done = commands.run(merge)
  assert_refused(done, 'missing flags\n  - --base\n  - --experts\n  - --output\n')
  assert '--help shows examples' in done.err


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config(:', 'fails: SyntaxError: '),
    ('1 / 0', 'fails: ZeroDivisionError: division by zero'),
    ('pass', "fails: AttributeError: module 'merge_config' has no attribute"),
    ('def get_config(): return {}', 'get_config() returns dict'),
    (
      "import ml_collections\ndef get_config(): return ml_collections.ConfigDict({'bas': 'x'})",
      "config: unknown field\n  - 'bas' (did you mean 'base'?)",
    ),
  ],
)
def test_broken_config_files(group, tmp_path, text, message):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  done = commands.run(merge, *flags_of(group, tmp_path / 'out'), f'--config={file}')
  assert_refused(done, message)


def test_help_teaches_by_examples():
  done = commands.run(merge, '--help')
  assert (done.status, done.err) == (0, '')
  assert 'python -m tools.merge --base=BASE --experts=MATH,CODE,TOOL' in done.out
  assert '--experts=MATH,CODE --output=MERGED --resume' in done.out
  for flag in (
    'base', 'config', 'expert_ids', 'experts', 'max_shard_size', 'memory_budget',
    'method', 'output', 'output_dtype', '[no]overwrite', '[no]resume', 'seed', 'vocab',
    'weights',
  ):  # fmt: skip
    assert f'  --{flag}: ' in done.out, flag


def test_a_real_process_from_a_clone(group, tmp_path):
  env = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
  command = [sys.executable, '-m', 'tools.merge']
  command += [*flags_of(group, tmp_path / 'out'), '--method=task_arithmetic']
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False, env=env
  )
  assert (done.returncode, commands.without_progress(done.stderr)) == (0, '')
  assert done.stdout.startswith(f'{tmp_path}/out: 2 experts merged by task_arithmetic')
  again = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False, env=env
  )
  assert again.returncode == 1
  assert f'error: output {tmp_path}/out is not empty\nWhy it matters:' in again.stderr
  assert 'Traceback' not in again.stderr
