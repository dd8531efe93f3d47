"""Merges that stopped at any moment and were resumed: the same bytes as one that ran."""

import copy
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import time

import pytest

import resmerge_jax
from resmerge_jax.errors import InputError, StoppedError
from resmerge_jax.pipeline.merge import prepare
from resmerge_jax.writers.folder import FolderWriter
from resmerge_jax.writers.journal import Journal
from tests import folders, groups, resumes

COMPLETE = 'nothing to resume: the merge starts from the beginning'


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return resumes.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> pathlib.Path:
  """One place for all runs: it stands in the config."""
  return tmp_path_factory.mktemp('work') / 'out'


@pytest.fixture(scope='module')
def expected(group, place):
  """What every resumed run must give: an uninterrupted one."""
  manifest = groups.merge(group, place, **resumes.SETTINGS)
  warnings = '\n'.join(manifest.warnings)
  assert "experts 'e0' and 'e2' are identical" in warnings
  assert 'which equals the embedding: loaders tie them' in warnings
  return resumes.contents(place)


@pytest.fixture
def output(place, monkeypatch) -> pathlib.Path:
  """The place, empty. Nothing waits: neither for the next sync nor for the disk."""
  monkeypatch.setattr('resmerge_jax.writers.journal.EVERY_S', 0)
  monkeypatch.setattr('resmerge_jax.writers.disk._sync_data', int)
  monkeypatch.setattr(os, 'fsync', int)
  for path in place.parent.iterdir():
    shutil.rmtree(path)
  return place


def resume(group, output, **settings) -> resmerge_jax.Manifest:
  return groups.merge(group, output, resume=True, **{**resumes.SETTINGS, **settings})


def stop(group, output, monkeypatch, n_steps=7, error=KeyboardInterrupt, **settings):
  """A run that ends by `error` when it has finished `n_steps`."""
  add, added = Journal.add, []

  def stopping(self, entry, files):
    if len(added) == n_steps:
      raise error
    added.append(entry)
    add(self, entry, files)

  with monkeypatch.context() as patch:
    patch.setattr(Journal, 'add', stopping)
    expected = error if isinstance(error, type) else type(error)
    with pytest.raises((expected, InputError)) as caught:
      groups.merge(group, output, **{**resumes.SETTINGS, **settings})
  return caught.value


def test_every_moment_of_a_run_can_be_resumed(
  group, output, expected, tmp_path, monkeypatch
):
  """Copies what is on disk before and after each write and rename of a run.

  That is what a kill leaves there. The journal is copied first: the other thread may
  append a line meanwhile, and a line must not vouch for bytes that the copy lacks.
  """
  moments: list[pathlib.Path] = []

  def copied() -> None:
    moment = tmp_path / f'{len(moments):03d}'
    moments.append(moment)
    for path in sorted(output.parent.rglob('*'), key=lambda p: 'journal' not in p.name):
      if path.is_file():
        target = moment / path.relative_to(output.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

  def around(call):
    def wrapped(*args):
      copied()
      result = call(*args)
      copied()
      return result

    return wrapped

  with monkeypatch.context() as patch:
    patch.setattr(FolderWriter, 'write', around(FolderWriter.write))
    patch.setattr(os, 'rename', around(os.rename))
    groups.merge(group, output, **resumes.SETTINGS)
  assert resumes.contents(output) == expected
  assert len(moments) > 60
  finished, verified = set(), 0
  for moment in moments:
    resumes.replace_folder(moment, output.parent) if moment.exists() else None
    manifest = resume(group, output)
    assert resumes.contents(output) == expected, moment
    assert os.listdir(output.parent) == ['out']
    verified += manifest.verified_only
    finished |= {n for n in manifest.notes if n.startswith('resuming: ')}
  assert verified == 1  # the last: complete, only the lock was left
  assert len(finished) > 10


def test_a_run_that_stops_again_and_again(group, output, expected, monkeypatch):
  for _ in range(3):
    error = stop(group, output, monkeypatch, n_steps=5, resume=True)
    assert not output.exists()
  n_steps = int(error.__notes__[0].split()[2])
  assert error.__notes__ == [
    f'15 of {n_steps} steps are kept in {resumes.partial(output)}: the same command '
    'with --resume continues'
  ]
  names = os.listdir(resumes.partial(output) / 'new')
  assert all(name.endswith('.safetensors.part') for name in names)
  manifest = resume(group, output)
  assert manifest.notes[0].endswith(f' in {resumes.partial(output)}: continued')
  assert manifest.notes[1:] == (
    f'resuming: 15 of {n_steps} steps are on disk and verified',
  )
  assert resumes.contents(output) == expected


def test_nothing_to_resume(group, output, expected):
  manifest = resume(group, output)
  assert manifest.notes == (COMPLETE,)
  assert not manifest.verified_only
  assert resumes.contents(output) == expected


def test_without_the_flag_a_run_that_stopped_is_removed(
  group, output, expected, monkeypatch
):
  stop(group, output, monkeypatch)
  manifest = groups.merge(group, output, **resumes.SETTINGS)
  assert manifest.notes[0].endswith(': removed before writing')
  assert resumes.contents(output) == expected


def test_a_torn_line_is_ignored(group, output, expected, monkeypatch):
  stop(group, output, monkeypatch)
  path = resumes.partial(output) / 'journal-00000.jsonl'
  raw = path.read_bytes()
  path.write_bytes(raw[:-9])
  manifest = resume(group, output)
  assert manifest.notes[1].startswith('resuming: 6 of ')
  assert resumes.contents(output) == expected


def test_a_journal_without_its_first_line_is_none(group, output, expected, monkeypatch):
  stop(group, output, monkeypatch)
  path = resumes.partial(output) / 'journal-00000.jsonl'
  path.write_bytes(path.read_bytes()[:100])
  manifest = resume(group, output)
  assert manifest.notes[1] == COMPLETE
  assert resumes.contents(output) == expected


@pytest.mark.parametrize('damage', ['flip', 'cut', 'remove'])
def test_damaged_bytes_are_computed_again(group, output, expected, monkeypatch, damage):
  stop(group, output, monkeypatch, n_steps=9)
  entry = json.loads(resumes.lines(output)[3])['entry']
  (name, spans), *_ = entry['written'].items()
  ref = prepare(groups.config_of(group, output, **resumes.SETTINGS)).plan.layout.where[
    name
  ]
  part = resumes.partial(output) / 'new' / f'{ref.file}.part'
  if damage == 'remove':
    part.unlink()
  else:
    with part.open('r+b') as file:
      file.seek(ref.start + spans[0][0])
      byte = file.read(1)[0]
      file.seek(-1, 1)
      file.write(bytes([byte ^ 1])) if damage == 'flip' else file.truncate()
  manifest = resume(group, output)
  again = manifest.notes[2]
  assert again.startswith('not on disk as the journal says, computed again: ')
  assert name in again
  if damage == 'flip':
    assert manifest.notes[1].startswith('resuming: 8 of ')
  assert resumes.contents(output) == expected


@pytest.mark.parametrize(
  ('settings', 'problem'),
  [
    ({'seed': 3}, '  - config seed: got 3, expected 0'),
    (
      {'method': resmerge_jax.ResMerge(rho=0.25)},
      '  - config method rho: got 0.25, expected 0.',
    ),
    ({'output_dtype': 'float32'}, 'output_dtype: got float32, expected bfloat16'),
    ({'max_shard_size': '20kB'}, 'max_shard_size: got 20000, expected 10000'),
    ({'rules': resumes.RULES[1:]}, 'config rules 0 '),
  ],
)
def test_another_merge_is_refused(group, output, monkeypatch, settings, problem):
  stop(group, output, monkeypatch)
  before = resumes.lines(output)
  with pytest.raises(InputError) as caught:
    resume(group, output, **settings)
  message = str(caught.value)
  assert message.startswith(
    f'the run that stopped at {output} cannot be continued: it was another merge '
    '(expected: what its journal says)\n'
  )
  assert problem in message
  assert 'What to do: repeat the command that stopped, with --resume' in message
  assert resumes.lines(output) == before
  resume(group, output)


def test_another_input_is_refused(group, output, tmp_path, monkeypatch):
  other = groups.Group(
    group.base, (*group.experts[:2], folders.write_folder(tmp_path / 'e2'))
  )
  shutil.rmtree(other.experts[2])
  shutil.copytree(group.experts[2], other.experts[2])  # the same files, times and all
  stop(group, output, monkeypatch)
  assert prepare(groups.config_of(other, output, resume=True, **resumes.SETTINGS)).found
  os.utime(other.experts[2] / 'model.safetensors', ns=(0, 0))
  with pytest.raises(InputError) as caught:
    resume(other, output)
  assert "  - expert 'e2' files model.safetensors mtime_ns: got 0, expected 1" in (
    str(caught.value)
  )
  other = groups.Group(group.base, (*group.experts[:2], group.experts[1]))
  with pytest.raises(InputError, match=r"expert 'e2' header_sha256: got nothing"):
    resume(other, output, expert_ids=('e0', 'e1', 'x'))


def test_a_complete_output_is_verified(group, output, expected):
  first = groups.merge(group, output, **resumes.SETTINGS)
  state = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
  again = resume(group, output)
  assert again.verified_only
  assert again.content == json.loads(json.dumps(first.content))
  assert again.warnings == first.warnings
  assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == state
  with pytest.raises(InputError) as caught:
    resume(group, output, seed=1)
  assert str(caught.value).startswith(
    f'output {output} is complete, but another merge (expected: what its manifest.json '
    'says)\n  - config seed: got 1, expected 0\n'
  )
  with (output / 'config.json').open('a') as file:
    file.write(' ')
  with pytest.raises(InputError) as caught:
    resume(group, output)
  assert 'is complete, but not as its manifest.json says\n  - config.json: ' in (
    str(caught.value)
  )
  assert not resume(group, output, overwrite=True).verified_only
  assert resumes.contents(output)['config.json'] == expected['config.json']


def test_an_output_that_is_no_merge_is_not_touched(group, output):
  output.mkdir()
  (output / 'theirs').touch()
  with pytest.raises(InputError, match='is not empty'):
    resume(group, output)
  assert os.listdir(output.parent) == ['out']


def test_overwriting_is_resumed_too(group, output, expected, monkeypatch):
  output.mkdir()
  (output / 'old').touch()
  stop(group, output, monkeypatch, overwrite=True)
  assert os.listdir(output) == ['old']
  manifest = resume(group, output, overwrite=True)
  assert 'resuming: 7 of ' in manifest.notes[2]
  got, want = resumes.contents(output), copy.deepcopy(expected)
  for found in (got, want):
    found.pop('README.md')
    config = found['manifest.json'].pop('config')
    assert config.pop('overwrite') == (found is got)
  assert got == want


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
  assert caught.value.__notes__[0].startswith('18 of 18 steps are kept in ')
  assert os.listdir(output) == ['theirs']
  (output / 'theirs').unlink()
  assert 'resuming: 18 of 18' in resume(group, output).notes[1]
  assert resumes.contents(output) == expected


def test_two_runs_into_one_output(group, output, monkeypatch):
  stop(group, output, monkeypatch)
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
  assert not hasattr(stop(group, output, monkeypatch, error=bad), '__notes__')
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
    int(text.split()[i]) for i, text in ((0, note), (1, resume(group, output).notes[1]))
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


@pytest.mark.parametrize('n_steps', [3, 18])
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
  manifest = resume(group, output)
  n_finished, n_steps = (int(word) for word in manifest.notes[1].split()[1:4:2])
  assert n_finished == n_steps
  (tmp_path / 'e1').rename(tmp_path / 'gone')
  with pytest.raises(InputError, match='no such folder'):
    resume(group, output)
