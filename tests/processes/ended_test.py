"""Several processes have one end: killed and resumed, stopped, refused."""

import json
import os
import pathlib
import shutil
import signal

import pytest

from resmerge_jax import processes
from resmerge_jax.errors import InputError
from tests import groups, launches, resumes, several
from tests.pipeline.merge_killed_test import loadable
from tests.processes.runs import DEVICES, merge_here, same_files

PROMPTLY_S = 45  # less than any wait for others, 60 s to join and JAX's 100 s
# The command itself, a little slower; it says what it writes.
STEADY = """
import time
from resmerge_jax.cli import merge
from resmerge_jax.writers import journal
from resmerge_jax.writers.folder import FolderWriter
write = FolderWriter.write
def steady(self, name, offset_bytes, data):
  write(self, name, offset_bytes, data)
  print('wrote', name, flush=True)
  time.sleep(0.25)
FolderWriter.write = steady
journal.EVERY_S = 0
merge.run()
"""
HASTY = 'from resmerge_jax import processes; processes.JOIN_S = 1\n'


def flags_of(group, *more: str) -> list[str]:
  """The merge 'means' as a command."""
  return [
    f'--base={group.base}',
    f'--experts={",".join(map(str, group.experts))}',
    '--output=means',
    '--method=task_arithmetic',
    '--mesh=row:8',
    f'--max_shard_size={several.SETTINGS["max_shard_size"]}',
    f'--memory_budget={several.SETTINGS["memory_budget"]}',
    *more,
  ]


def stopped(
  work, group, kind: signal.Signals, who: int, *more: str
) -> list[launches.Ended]:
  """How two processes ended after one got a signal in the middle."""
  words = launches.joining(2, flags_of(group, *more))
  with launches.started(work, words, devices=4, script=STEADY) as launch:
    launch.wait_for(who, 'lm_head')
    launch.wait_for(who, 'embed_tokens' if not more else 'up_proj')
    launch.processes[who].send_signal(kind)
    ended = launch.wait()
  assert max(e.seconds for e in ended) < PROMPTLY_S
  assert not (work / 'means').exists()
  assert not loadable(work)
  return ended


@pytest.fixture(scope='module')
def killed(group, tmp_path_factory) -> pathlib.Path:
  """What a run leaves of which one process was killed."""
  work = tmp_path_factory.mktemp('killed')
  first, second = stopped(work, group, signal.SIGKILL, 1)
  assert second.status == -signal.SIGKILL
  assert first.status == 1
  assert first.err.splitlines()[-1] == (
    'error: process 1 of this merge died; this process ends too'
  )
  return work


@pytest.mark.parametrize('n_processes', [1, 2, 4])
def test_killed_and_resumed_by_any_number(
  killed, group, alone, by_two, tmp_path, n_processes
):
  resumes.replace_folder(killed, tmp_path)
  if n_processes == 1:
    notes = merge_here(tmp_path, group, 'means', resume=True).notes
    assert any(note.startswith('resuming: ') for note in notes)
  else:
    words = launches.joining(n_processes, flags_of(group, '--resume'))
    first, *others = launches.run(tmp_path, words, devices=DEVICES // n_processes)
    assert (first.status, 'error' in first.err) == (0, False), first
    assert 'note: resuming: ' in first.out
    assert {(e.status, e.err) for e in others} == {(0, '')}
  assert os.listdir(tmp_path) == ['means']
  assert groups.weight_bytes(tmp_path / 'means') == groups.weight_bytes(alone / 'means')
  if n_processes == 2:
    same_files(tmp_path / 'means', by_two / 'means')


def test_a_resume_that_ends_as_it_begins_costs_no_step(killed, group, tmp_path):
  def resumed(work) -> str:
    notes = merge_here(work, group, 'means', resume=True).notes
    return next(note for note in notes if note.startswith('resuming: '))

  def full_disk(*_):
    raise OSError(28, 'No space left on device')

  for name in ('at_once', 'later'):
    resumes.replace_folder(killed, tmp_path / name)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('resmerge_jax.writers.resumable.Journal', full_disk)
    with pytest.raises(InputError, match='No space left'):
      resumed(tmp_path / 'later')
  assert resumed(tmp_path / 'later') == resumed(tmp_path / 'at_once')


def test_the_first_process_killed(group, alone, tmp_path):
  work = tmp_path / 'work'
  first, second = stopped(work, group, signal.SIGKILL, 0)
  assert first.status == -signal.SIGKILL
  assert second.status != 0
  # JAX may be faster to notice, and then prints why it aborts the process.
  assert 'process 0 of this merge died' in second.err or 'leader' in second.err
  notes = merge_here(work, group, 'means', resume=True).notes
  assert any(note.startswith('resuming: ') for note in notes)
  assert groups.weight_bytes(work / 'means') == groups.weight_bytes(alone / 'means')


def test_whole_files_killed_and_resumed(group, alone, tmp_path):
  """Only files that were complete count; every other is written anew by its owner."""
  work = tmp_path / 'work'
  small = {'max_shard_size': '20kB', 'whole_files': True, 'mesh': 'layer:4'}
  flags = ('--whole_files', '--max_shard_size=20kB', '--mesh=layer:4')
  stopped(work, group, signal.SIGKILL, 1, *flags)
  partial = resumes.partial(work / 'means')
  written = [
    json.loads(line)['entry']['written']
    for path in partial.glob('journal-*.jsonl')
    for line in path.read_text().splitlines()[1:]
  ]
  manifest = merge_here(work, group, 'means', 4, resume=True, **small)
  assert any(note.startswith('resuming: ') for note in manifest.notes)
  in_files = manifest.content['tensors']
  for file in {in_files[name]['file'] for entry in written for name in entry}:
    n_bytes = sum(
      span[1] - span[0]
      for entry in written
      for name, spans in entry.items()
      for span in spans
      if in_files[name]['file'] == file
    )
    assert n_bytes == sum(
      tensor['end'] - tensor['begin']
      for tensor in in_files.values()
      if tensor['file'] == file
    )
  assert written
  got, want = (groups.load(folder / 'means') for folder in (work, alone))
  groups.assert_same_bits(got, want)


def test_one_process_terminated(group, tmp_path):
  first, second = stopped(tmp_path / 'work', group, signal.SIGTERM, 1)
  assert (first.status, second.status) == (1, 128 + signal.SIGTERM)
  assert second.err.startswith('terminated; ')
  assert second.err.endswith('the same command with --resume continues\n')
  assert first.err.splitlines()[-1] == (
    'error: process 1 of this merge failed: it was told to stop; this process ends too'
  )


def assert_nothing_left(work: pathlib.Path) -> None:
  assert list(work.iterdir()) == []


def test_bad_weights_that_one_process_reads(group, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(group.experts[1], broken)
  several.spoil_last_row(broken, several.CLOSE)
  work = tmp_path / 'work'
  pair = groups.Group(group.base, (group.experts[0], broken))
  words = launches.joining(2, flags_of(pair))
  first, second = launches.run(work, words, devices=4)
  assert (first.status, second.status) == (1, 1)
  assert max(first.seconds, second.seconds) < PROMPTLY_S
  assert second.err.startswith(
    f"error: NaN or Inf in the weights\n  - expert 'broken': {several.CLOSE}\n"
  )
  assert first.err.splitlines()[-1] == (
    'error: process 1 of this merge failed: NaN or Inf in the weights; this process '
    'ends too'
  )
  assert_nothing_left(work)


def test_an_input_that_one_process_does_not_see(group, tmp_path):
  words = launches.joining(2, flags_of(group))
  words[1][1] = f'--experts={tmp_path / "elsewhere"}'
  first, second = launches.run(tmp_path / 'work', words, devices=4)
  assert (first.status, second.status) == (1, 1)
  assert second.err.startswith("error: expert 'elsewhere'")
  assert first.err.startswith(
    "error: process 1 of this merge failed: expert 'elsewhere'"
  )
  assert_nothing_left(tmp_path / 'work')


def test_another_merge_is_refused(group, tmp_path):
  words = launches.joining(2, flags_of(group))
  words[1].append('--seed=7')
  first, second = launches.run(tmp_path / 'work', words, devices=4)
  assert (first.status, second.status) == (1, 1)
  what = 'process 1 was given another merge than process 0'
  assert second.err.startswith(f'error: {what}')
  assert '  - config seed: got 7, expected 0\n' in second.err
  assert f'error: process 1 of this merge failed: {what}' in first.err
  assert_nothing_left(tmp_path / 'work')


def test_nobody_answers(group, tmp_path):
  words = [launches.joining(2, flags_of(group))[i] for i in (0, 1)]  # of two ports
  script = HASTY + launches.COMMAND
  first, second = launches.run(tmp_path / 'work', words, devices=4, script=script)
  assert (first.status, second.status) == (1, 1)
  assert max(first.seconds, second.seconds) < PROMPTLY_S
  assert first.err.startswith('error: process 0 has waited 1 s at 127.0.0.1:')
  assert second.err.startswith('error: process 1 has waited 1 s at 127.0.0.1:')
  assert 'What to do: start all processes at about the same time' in second.err


@pytest.mark.parametrize(
  ('given', 'text'),
  [
    (
      ('host:1', None, 0),
      'flags of several processes are missing\n  - --num_processes',
    ),
    ((None, 2, None), '  - --coordinator\n  - --process_id'),
    (('host:1', 2, 2), 'process_id: got 2, expected 0 to 1'),
    (('host:1', 2, -1), 'process_id: got -1, expected 0 to 1'),
    (('host:1', 0, 0), 'num_processes: got 0, expected 1 or more'),
    (('host', 2, 0), "coordinator: got 'host', expected HOST:PORT"),
  ],
)
def test_wrong_flags(given, text):
  with pytest.raises(InputError) as caught:
    processes.start(*given)
  assert text in str(caught.value)
