"""Merges that stopped at any moment and were resumed: the same bytes as one that ran."""

import copy
import json
import os
import pathlib
import shutil

import pytest

import resmerge_jax
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.prepare import prepare
from resmerge_jax.writers.folder import FolderWriter
from tests import folders, groups, resumes

COMPLETE = 'nothing to resume: the merge starts from the beginning'


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
    manifest = resumes.resume(group, output)
    assert resumes.contents(output) == expected, moment
    assert os.listdir(output.parent) == ['out']
    verified += manifest.verified_only
    finished |= {n for n in manifest.notes if n.startswith('resuming: ')}
  assert verified == 1  # the last: complete, only the lock was left
  assert len(finished) > 10


def test_a_run_that_stops_again_and_again(group, output, expected, monkeypatch):
  for _ in range(3):
    error = resumes.stop(group, output, monkeypatch, n_steps=5, resume=True)
    assert not output.exists()
  n_steps = int(error.__notes__[0].split()[2])
  assert error.__notes__ == [
    f'15 of {n_steps} steps are kept in {resumes.partial(output)}: the same command '
    'with --resume continues'
  ]
  names = os.listdir(resumes.partial(output) / 'new')
  assert all(name.endswith('.safetensors.part') for name in names)
  manifest = resumes.resume(group, output)
  assert manifest.notes[0].endswith(f' in {resumes.partial(output)}: continued')
  assert manifest.notes[1:] == (
    f'resuming: 15 of {n_steps} steps are on disk and verified',
  )
  assert resumes.contents(output) == expected


def test_nothing_to_resume(group, output, expected):
  manifest = resumes.resume(group, output)
  assert manifest.notes == (COMPLETE,)
  assert not manifest.verified_only
  assert resumes.contents(output) == expected


def test_without_the_flag_a_run_that_stopped_is_removed(
  group, output, expected, monkeypatch
):
  resumes.stop(group, output, monkeypatch)
  manifest = groups.merge(group, output, **resumes.SETTINGS)
  assert manifest.notes[0].endswith(': removed before writing')
  assert resumes.contents(output) == expected


def test_a_torn_line_is_ignored(group, output, expected, monkeypatch):
  resumes.stop(group, output, monkeypatch)
  path = resumes.partial(output) / 'journal-00000.jsonl'
  raw = path.read_bytes()
  path.write_bytes(raw[:-9])
  manifest = resumes.resume(group, output)
  assert manifest.notes[1].startswith('resuming: 6 of ')
  assert resumes.contents(output) == expected


def test_a_journal_without_its_first_line_is_none(group, output, expected, monkeypatch):
  resumes.stop(group, output, monkeypatch)
  path = resumes.partial(output) / 'journal-00000.jsonl'
  path.write_bytes(path.read_bytes()[:100])
  manifest = resumes.resume(group, output)
  assert manifest.notes[1] == COMPLETE
  assert resumes.contents(output) == expected


@pytest.mark.parametrize('damage', ['flip', 'cut', 'remove'])
def test_damaged_bytes_are_computed_again(group, output, expected, monkeypatch, damage):
  resumes.stop(group, output, monkeypatch, n_steps=9)
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
  manifest = resumes.resume(group, output)
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
  resumes.stop(group, output, monkeypatch)
  before = resumes.lines(output)
  with pytest.raises(InputError) as caught:
    resumes.resume(group, output, **settings)
  message = str(caught.value)
  assert message.startswith(
    f'the run that stopped at {output} cannot be continued: it was another merge '
    '(expected: what its journal says)\n'
  )
  assert problem in message
  assert 'What to do: repeat the command that stopped, with --resume' in message
  assert resumes.lines(output) == before
  resumes.resume(group, output)


def test_another_input_is_refused(group, output, tmp_path, monkeypatch):
  other = groups.Group(
    group.base, (*group.experts[:2], folders.write_folder(tmp_path / 'e2'))
  )
  shutil.rmtree(other.experts[2])
  shutil.copytree(group.experts[2], other.experts[2])  # the same files, times and all
  resumes.stop(group, output, monkeypatch)
  assert prepare(groups.config_of(other, output, resume=True, **resumes.SETTINGS)).found
  os.utime(other.experts[2] / 'model.safetensors', ns=(0, 0))
  with pytest.raises(InputError) as caught:
    resumes.resume(other, output)
  assert "  - expert 'e2' files model.safetensors mtime_ns: got 0, expected 1" in (
    str(caught.value)
  )
  other = groups.Group(group.base, (*group.experts[:2], group.experts[1]))
  with pytest.raises(InputError, match=r"expert 'e2' header_sha256: got nothing"):
    resumes.resume(other, output, expert_ids=('e0', 'e1', 'x'))


def test_a_complete_output_is_verified(group, output, expected):
  first = groups.merge(group, output, **resumes.SETTINGS)
  state = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
  again = resumes.resume(group, output)
  assert again.verified_only
  assert again.content == json.loads(json.dumps(first.content))
  assert again.warnings == first.warnings
  assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == state
  with pytest.raises(InputError) as caught:
    resumes.resume(group, output, seed=1)
  assert str(caught.value).startswith(
    f'output {output} is complete, but another merge (expected: what its manifest.json '
    'says)\n  - config seed: got 1, expected 0\n'
  )
  with (output / 'config.json').open('a') as file:
    file.write(' ')
  with pytest.raises(InputError) as caught:
    resumes.resume(group, output)
  assert 'is complete, but not as its manifest.json says\n  - config.json: ' in (
    str(caught.value)
  )
  assert not resumes.resume(group, output, overwrite=True).verified_only
  assert resumes.contents(output)['config.json'] == expected['config.json']


def test_an_output_that_is_no_merge_is_not_touched(group, output):
  output.mkdir()
  (output / 'theirs').touch()
  with pytest.raises(InputError, match='is not empty'):
    resumes.resume(group, output)
  assert os.listdir(output.parent) == ['out']


def test_overwriting_is_resumed_too(group, output, expected, monkeypatch):
  output.mkdir()
  (output / 'old').touch()
  resumes.stop(group, output, monkeypatch, overwrite=True)
  assert os.listdir(output) == ['old']
  manifest = resumes.resume(group, output, overwrite=True)
  assert 'resuming: 7 of ' in manifest.notes[2]
  got, want = resumes.contents(output), copy.deepcopy(expected)
  for found in (got, want):
    found.pop('README.md')
    config = found['manifest.json'].pop('config')
    assert config.pop('overwrite') == (found is got)
  assert got == want
