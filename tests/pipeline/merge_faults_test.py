"""Disks that fail, inputs that change, two runs at once: what is said and what is kept."""

import dataclasses
import errno
import os
import shutil
import time

import pytest

import resmerge_jax
from resmerge_jax.errors import InputError, StoppedError
from resmerge_jax.writers.folder import FolderWriter
from resmerge_jax.writers.journal import Journal
from tests import groups, resumes


def test_an_output_filled_meanwhile_can_still_be_replaced(
  group, output, expected, monkeypatch
):
  commit = FolderWriter.commit

  def late(self, files):
    output.mkdir()
    (output / 'theirs').touch()
    return commit(self, files)

  with monkeypatch.context() as patch:
    patch.setattr(FolderWriter, 'commit', late)
    with pytest.raises(StoppedError, match='is not empty') as caught:
      groups.merge(group, output, **resumes.SETTINGS)
  assert caught.value.__notes__[0].startswith('22 of 22 steps are kept in ')
  assert os.listdir(output) == ['theirs']
  (output / 'theirs').unlink()
  assert 'resuming: 22 of 22' in resumes.resume(group, output).notes[1]
  assert resumes.contents(output) == expected


def test_two_runs_into_one_output(group, output, monkeypatch):
  resumes.stop(group, output, monkeypatch)
  config = groups.config_of(group, output, resume=True, **resumes.SETTINGS)
  add = Journal.add

  def second_run(self, entry, files):
    for second in (config, dataclasses.replace(config, seed=1)):
      with pytest.raises(InputError, match='another merge is writing'):
        resmerge_jax.merge(second)
    add(self, entry, files)

  monkeypatch.setattr(Journal, 'add', second_run)
  assert resmerge_jax.merge(config).notes[1].startswith('resuming: 7 of ')


def test_bad_weights_leave_nothing(group, output, monkeypatch):
  bad = InputError('NaN or Inf in the weights')
  assert not hasattr(resumes.stop(group, output, monkeypatch, error=bad), '__notes__')
  assert not any(output.parent.iterdir())


def failing(call, n_good, code):
  """`call`, which from its n-th use on fails as a disk does."""
  calls = []

  def wrapped(*args):
    calls.append(args)
    if len(calls) > n_good:
      raise OSError(code, os.strerror(code))
    return call(*args)

  return wrapped


def line_by_line(add):
  """`Journal.add` that waits for its line, so that the number of syncs is known."""

  def wrapped(self, entry, files):
    n_lines = self.count
    add(self, entry, files)
    while self.count == n_lines and self._error is None:
      time.sleep(0.001)

  return wrapped


@pytest.mark.parametrize(
  ('name', 'n_good', 'code', 'message'),
  [
    ('pwrite', 15, errno.ENOSPC, 'No space left on device on the disk of'),
    ('pwrite', 15, errno.EIO, 'cannot write .* Input/output error'),
    ('preadv', 40, errno.EIO, 'cannot be read: Input/output error'),
    ('fdatasync', 9, errno.EIO, 'cannot write .* Input/output error'),
    ('rename', 3, errno.EIO, 'cannot be completed: Input/output error'),
  ],
)
def test_what_the_disk_refuses_can_be_resumed(
  group, output, expected, monkeypatch, name, n_good, code, message
):
  with monkeypatch.context() as patch:
    patch.setattr(os, name, failing(getattr(os, name), n_good, code))
    patch.setattr('resmerge_jax.writers.disk._sync_data', os.fdatasync)
    patch.setattr(Journal, 'add', line_by_line(Journal.add))
    with pytest.raises(StoppedError, match=message) as caught:
      groups.merge(group, output, **resumes.SETTINGS)
  (note,) = caught.value.__notes__
  assert note.endswith('the same command with --resume continues')
  n_kept, n_resumed = (
    int(text.split()[i])
    for i, text in ((0, note), (1, resumes.resume(group, output).notes[1]))
  )
  # A line whose own sync failed was written all the same: its bytes had been synced.
  assert n_resumed == n_kept + (name == 'fdatasync')
  assert resumes.contents(output) == expected


def during(monkeypatch, n_steps, action):
  """Calls `action` when a run has finished `n_steps`."""
  add, added = Journal.add, []

  def acting(self, entry, files):
    added.append(entry)
    if len(added) == n_steps:
      action()
    add(self, entry, files)

  monkeypatch.setattr(Journal, 'add', acting)


@pytest.mark.parametrize('n_steps', [3, 22])
@pytest.mark.parametrize('how', ['touched', 'replaced'])
def test_an_input_that_changes(output, tmp_path, monkeypatch, n_steps, how):
  group = resumes.write_group(tmp_path)
  file = group.experts[1] / 'model.safetensors'

  def change():
    if how == 'replaced':
      shutil.copyfile(file, tmp_path / 'new')
      os.rename(tmp_path / 'new', file)
    os.utime(file, ns=(0, 0))

  during(monkeypatch, n_steps, change)
  with pytest.raises(InputError) as caught:
    groups.merge(group, output, **resumes.SETTINGS)
  assert not isinstance(caught.value, StoppedError)
  assert f"checkpoint 'e1', {file}" in str(caught.value)
  assert 'leave the input folders alone' in str(caught.value)
  assert not any(output.parent.iterdir())


def test_an_input_that_vanishes(output, tmp_path, monkeypatch):
  group = resumes.write_group(tmp_path)
  file = group.experts[1] / 'model.safetensors'
  with monkeypatch.context() as patch:
    during(patch, 3, lambda: file.rename(tmp_path / 'away'))
    with pytest.raises(StoppedError) as caught:
      groups.merge(group, output, **resumes.SETTINGS)
  assert str(caught.value) == (
    'input files vanished while they were merged\n'
    f"  - checkpoint 'e1', {file} cannot be read: No such file or directory\n"
    'What to do: see that the file can be read again, then run the same command'
  )
  (tmp_path / 'away').rename(file)
  manifest = resumes.resume(group, output)
  n_finished, n_steps = (int(word) for word in manifest.notes[1].split()[1:4:2])
  assert n_finished == n_steps
  (tmp_path / 'e1').rename(tmp_path / 'gone')
  with pytest.raises(InputError, match='no such folder'):
    resumes.resume(group, output)
