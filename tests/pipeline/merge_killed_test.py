"""A merge that is killed in the middle, and the one after it."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from resmerge_jax.cli import merge as merge_command
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.merge import prepare
from tests import commands, folders, groups
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


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
  group = groups.write(tmp_path / 'in', folders.tensors(), [folders.tensors(1)])

  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr('resmerge_jax.writers.folder._write_all', interrupted)
  start = time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    groups.merge(group, tmp_path / 'work' / 'out', method=MEAN)
  assert time.monotonic() - start < 30
  assert not any((tmp_path / 'work').iterdir())


def test_a_full_disk_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
  group = groups.write(tmp_path / 'in', folders.tensors(), [folders.tensors(1)])
  real, calls = os.pwrite, []

  def full(fd, data, offset):
    calls.append(offset)
    if len(calls) > 2:
      raise OSError(28, 'No space left on device')
    return real(fd, data, offset)

  monkeypatch.setattr(os, 'pwrite', full)
  with pytest.raises(InputError, match='No space left on device on the disk of'):
    groups.merge(group, tmp_path / 'work' / 'out', method=MEAN)
  assert not any((tmp_path / 'work').iterdir())
