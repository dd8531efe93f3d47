"""A merge that is killed in the middle, and the one after it."""

import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from resmerge_jax.cli import merge as merge_command
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.prepare import prepare
from tests import commands, folders, groups, launches, resumes
from tests.cli.merge_test import flags_of
from tests.groups import MEAN

ROOT = pathlib.Path(__file__).parents[2]
# Writes the first tensor, then hangs: killed at a moment that the test chooses.
SLOW = """
import sys, time
from resmerge_jax.writers.folder import FolderWriter
from tests import groups
import pathlib
write = FolderWriter.write
def slow(self, name, offset_bytes, data):
  write(self, name, offset_bytes, data)
  print(name, flush=True)
  time.sleep(600)
FolderWriter.write = slow
base, expert, output = map(pathlib.Path, sys.argv[1:])
groups.merge(groups.Group(base, (expert,)), output, method=groups.MEAN, overwrite=True)
"""


def loadable(folder: pathlib.Path) -> list[pathlib.Path]:
  """Files below `folder` that a loader would take for a model or its weights."""
  return [
    path
    for path in folder.rglob('*')
    if path.name.endswith(('config.json', '.safetensors', '.index.json'))
  ]


@pytest.mark.parametrize('replacing', [False, True])
def test_nothing_loadable_is_left_and_the_next_run_says_what_it_removes(
  tmp_path, replacing
):
  group = groups.write(tmp_path / 'in', folders.tensors(), [folders.tensors(1)])
  output = tmp_path / 'work' / 'out'
  old = {}
  if replacing:
    groups.merge(group, output, method=MEAN, output_dtype='float32')
    old = groups.weight_bytes(output)
  with subprocess.Popen(
    [sys.executable, '-c', SLOW, group.base, group.experts[0], output],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout is not None
    assert process.stdout.readline().strip() in folders.tensors()
    with pytest.raises(InputError, match='another merge is writing'):
      groups.merge(group, output, method=MEAN, overwrite=True)
    process.kill()
  partial = output.with_name('.out.resmerge-partial')
  assert os.listdir(partial / 'new') == ['model.safetensors.part']
  assert not loadable(partial)
  if replacing:
    assert groups.weight_bytes(output) == old
  else:
    assert not output.exists()

  config = groups.config_of(group, output, method=MEAN, overwrite=True)
  notes = prepare(config).notes
  assert notes[0].startswith('a run that died left ')
  assert notes[0].endswith(f' in {partial}: removed before writing')
  done = commands.run(
    merge_command,
    f'--base={group.base}',
    f'--experts={group.experts[0]}',
    f'--output={output}',
    '--method=task_arithmetic',
    '--overwrite',
  )
  assert done.status == 0, done
  assert f'in {partial}: removed before writing' in done.out
  groups.assert_same_bits(groups.load(output), folders.tensors(1))
  assert os.listdir(output.parent) == ['out']


# The command itself, a little slower; it says what it writes.
STEADY = """
import sys, time
from resmerge_jax.cli import merge
from resmerge_jax.writers import journal
from resmerge_jax.writers.folder import FolderWriter
write = FolderWriter.write
def steady(self, name, offset_bytes, data):
  write(self, name, offset_bytes, data)
  print(name, flush=True)
  time.sleep(0.05)
FolderWriter.write = steady
journal.EVERY_S = 0
merge.run()
"""


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return resumes.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='module')
def config_file(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('config') / 'config.py'
  rules = [dataclasses.asdict(rule) for rule in resumes.RULES]
  values = {**resumes.SETTINGS, 'rules': rules}
  path.write_text(
    'import ml_collections\n'
    f'def get_config(): return ml_collections.ConfigDict({values!r})\n'
  )
  return path


@pytest.fixture(scope='module')
def expected(group, tmp_path_factory):
  """The place of all runs, and what every one of them must give."""
  output = tmp_path_factory.mktemp('work') / 'out'
  groups.merge(group, output, **resumes.SETTINGS)
  found = resumes.contents(output)
  shutil.rmtree(output)
  return output, found


def stopped(command: list[str], kind: signal.Signals, n_writes: int) -> tuple[int, str]:
  """Status and stderr of the command, sent a signal soon after so many writes."""
  env = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': '0'}
  with subprocess.Popen(
    [sys.executable, '-c', STEADY, *command],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout is not None
    for _ in range(n_writes):
      assert process.stdout.readline()
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(kind)
    _, err = process.communicate(timeout=launches.TIMEOUT_S)
  return process.returncode, commands.without_progress(err)


@pytest.mark.parametrize(
  ('kind', 'n_writes'),
  [
    (signal.SIGKILL, 1),
    (signal.SIGKILL, 9),
    (signal.SIGKILL, 16),
    (signal.SIGTERM, 6),
    (signal.SIGINT, 12),
  ],
)
def test_a_signal_in_the_middle_then_resume(
  group, config_file, expected, kind, n_writes
):
  output, contents = expected
  shutil.rmtree(output, ignore_errors=True)
  command = [f'--config={config_file}', *flags_of(group, output)]
  status, err = stopped(command, kind, n_writes)
  assert not output.exists()
  assert not loadable(output.parent)
  if kind == signal.SIGKILL:
    assert status == -kind
  else:
    assert status == 128 + kind, err
    word = {signal.SIGTERM: 'terminated', signal.SIGINT: 'interrupted'}[kind]
    n_steps = int(err.split()[1])
    assert n_writes - 1 <= n_steps < 22
    assert err == (
      f'{word}; {n_steps} of 22 steps are kept in {resumes.partial(output)}: the same '
      'command with --resume continues\n'
    )
  done = commands.run(merge_command, *command, '--resume')
  assert (done.status, done.err) == (0, ''), done
  resumed = 'note: resuming: ' in done.out
  assert resumed or n_writes == 1
  assert resumes.contents(output) == contents
  done = commands.run(merge_command, *command, '--resume')
  assert (done.status, done.err) == (0, '')
  assert done.out.splitlines()[-1].startswith(
    f'{output}: complete, nothing to do; all '
  )


def test_an_interrupt_before_the_first_step_leaves_nothing(tmp_path, monkeypatch):
  group = groups.write(tmp_path / 'in', folders.tensors(), [folders.tensors(1)])

  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr('resmerge_jax.writers.folder.write_all', interrupted)
  start = time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    groups.merge(group, tmp_path / 'work' / 'out', method=MEAN)
  assert time.monotonic() - start < 30
  assert not any((tmp_path / 'work').iterdir())


def test_a_full_disk_leaves_nothing_loadable(tmp_path, monkeypatch):
  group = groups.write(tmp_path / 'in', folders.tensors(), [folders.tensors(1)])
  output = tmp_path / 'work' / 'out'
  real, calls = os.pwrite, []

  def full(fd, data, offset):
    calls.append(offset)
    if len(calls) > 4:
      raise OSError(28, 'No space left on device')
    return real(fd, data, offset)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'pwrite', full)
    done = commands.run(
      merge_command,
      *flags_of(group, output),
      '--method=task_arithmetic',
    )
  assert done.status == 1
  assert done.out == ''
  lines = done.err.splitlines()
  assert lines[0].startswith('error: No space left on device on the disk of')
  assert lines[1].startswith('What to do: free some space')
  assert lines[2:] == [
    f'1 of 4 steps are kept in {resumes.partial(output)}: the same command with '
    '--resume continues'
  ]
  assert os.listdir(output.parent) == [resumes.partial(output).name]
  assert not loadable(output.parent)
