"""Merges by several processes: the bytes of one process, and one end for all."""

import contextlib
import json
import os
import pathlib
import shutil
import signal

import jax
import pytest
from orbax.checkpoint import v1 as checkpoint

import resmerge_jax
from resmerge_jax import processes
from resmerge_jax.errors import InputError
from tests import adapters, groups, launches, resumes, several
from tests.pipeline.merge_killed_test import loadable

# All in one worker: their merges are shared.
pytestmark = pytest.mark.xdist_group('processes')

DEVICES = 8  # of all processes
PROMPTLY_S = 45  # less than any wait for others, 60 s to join and JAX's 100 s
# One start for several merges; each of a name and the settings that differ.
MERGES = {
  'automatic': {},
  'layers': {'mesh': 'layer:8'},
  'rows': {'mesh': 'row:8', 'output_dtype': 'float32'},
  'both': {'mesh': 'layer:2,row:4'},
  'whole': {'whole_files': True, 'max_shard_size': '20kB'},  # a layer per file
  'means': {'method': {'name': 'task_arithmetic'}, 'mesh': 'row:8'},
  'counts': {'method': {'name': 'ram'}},  # scans the whole model first
  'trims': {'method': {'name': 'ties'}},
  'orbax': {
    'output_format': 'orbax',
    'whole_files': True,
    'method': {'name': 'task_arithmetic'},
  },
  'formats': {'output_format': 'both', 'method': {'name': 'task_arithmetic'}},
}
MANY = """
import json, pathlib, sys
from resmerge_jax import merge, processes
from resmerge_jax.config import config_from
flags = dict(word[2:].split('=', 1) for word in sys.argv[2:])
numbers = int(flags['num_processes']), int(flags['process_id'])
processes.start(flags['coordinator'], *numbers)
for values in json.loads(sys.argv[1]):
  merge(config_from(values))
"""
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


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return several.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='module')
def base(group):
  return groups.load(group.base)


def values_of(group, name: str, merge: str) -> dict:
  """Settings of one of MERGES into folder `name`, as JSON knows them."""
  values = {'base': str(group.base), 'experts': [str(path) for path in group.experts]}
  return {**values, 'output': name, **several.SETTINGS, **MERGES[merge]}


def merge_here(work: pathlib.Path, group, merge: str, n_devices=DEVICES, **more):
  """One of MERGES by this process, in folder `work`."""
  work.mkdir(exist_ok=True)
  devices = jax.devices()[:n_devices]
  with contextlib.chdir(work), pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: devices)
    patch.setattr(jax, 'local_devices', lambda: devices)
    values = {**values_of(group, merge, merge), **more}
    return resmerge_jax.merge(resmerge_jax.config.config_from(values))


def merge_by(n_processes: int, work: pathlib.Path, group, *names: str) -> None:
  """MERGES of these names (given twice: once more) by several processes."""
  seen, merges = set(), []
  for name in names:
    merges.append(values_of(group, name + '_again' * (name in seen), name))
    seen.add(name)
  words = launches.joining(n_processes, [json.dumps(merges)])
  for ended in launches.run(work, words, devices=DEVICES // n_processes, script=MANY):
    assert (ended.status, ended.err) == (0, '')


@pytest.fixture(scope='module')
def alone(group, tmp_path_factory) -> pathlib.Path:
  """What one process makes of eight devices, and of one."""
  work = tmp_path_factory.mktemp('alone')
  for name in ('automatic', 'layers', 'means', 'counts', 'trims'):
    merge_here(work, group, name)
  for name in ('automatic', 'rows'):
    merge_here(work / 'one_device', group, name, 1, mesh=None)
  return work


@pytest.fixture(scope='module')
def by_two(group, tmp_path_factory) -> pathlib.Path:
  work = tmp_path_factory.mktemp('two')
  merge_by(2, work, group, *MERGES, 'both')
  return work


def same_files(a: pathlib.Path, b: pathlib.Path, *but: str) -> None:
  ours, theirs = resumes.contents(a), resumes.contents(b)
  assert ours.keys() == theirs.keys()
  assert {name for name in ours if ours[name] != theirs[name]} <= set(but)


@pytest.mark.parametrize('name', ['automatic', 'layers'])
def test_two_processes_write_the_bytes_of_one(alone, by_two, name):
  assert groups.weight_bytes(by_two / name) == groups.weight_bytes(alone / name)
  # Sums over rows, where these were cut, are added in another order.
  sums = ('records.jsonl', 'manifest.json') if name == 'layers' else ()
  same_files(by_two / name, alone / name, *sums)
  exact = {
    r['name']: any(r.get('float64_head', [])) for r in groups.records(by_two / name)
  }
  assert [n for n, again in exact.items() if again] == [several.CLOSE]


def test_adapters_by_two_processes(base, group, tmp_path):
  """Factors, by layers and by rows; an embedding in blocks of rows."""
  modules = ('mlp.up_proj', 'self_attn.k_proj')
  names = [f'model.layers.{i}.{m}' for i in range(several.LAYERS) for m in modules]
  experts = tuple(
    adapters.write(
      tmp_path / f'e{seed}',
      {k: x for n in names for k, x in adapters.factors(base, n, 5, seed).items()},
      r=5,
    )
    for seed in range(2)
  )
  of_adapters, work = group._replace(experts=experts), tmp_path / 'two'
  merge_by(2, work, of_adapters, 'layers', 'rows')
  one = merge_here(tmp_path / 'one', of_adapters, 'layers').output
  assert groups.weight_bytes(work / 'layers') == groups.weight_bytes(one)
  one = merge_here(tmp_path / 'one', of_adapters, 'rows', 1, mesh=None).output
  several.assert_agree(groups.load(work / 'rows'), groups.load(one), base)


@pytest.mark.parametrize('name', ['counts', 'trims'])
def test_scans_of_two_processes_find_what_one_finds(alone, by_two, name):
  assert groups.weight_bytes(by_two / name) == groups.weight_bytes(alone / name)
  ours, theirs = (
    json.loads((work / name / 'manifest.json').read_text())['scans']
    for work in (by_two, alone)
  )
  assert ours == theirs
  assert ours


def test_four_processes_write_the_bytes_of_one(alone, group, tmp_path):
  merge_by(4, tmp_path, group, 'automatic')
  same_files(tmp_path / 'automatic', alone / 'automatic')


@pytest.mark.parametrize(
  ('name', 'reference'), [('rows', 'rows'), ('both', 'automatic')]
)
def test_rows_on_several_processes_agree_with_one_device(
  alone, by_two, base, name, reference
):
  want = groups.load(alone / 'one_device' / reference)
  several.assert_agree(groups.load(by_two / name), want, base)
  assert [r['name'] for r in groups.records(by_two / name)] == list(base)


def test_two_runs_are_equal(by_two):
  ours, again = (resumes.contents(by_two / name) for name in ('both', 'both_again'))
  for name in ours.keys() - {'manifest.json', 'README.md'}:  # these name the output
    assert ours[name] == again[name], name


def test_whole_files_have_the_same_bytes(alone, by_two):
  ours, theirs = by_two / 'whole', alone / 'automatic'
  assert len(groups.weight_bytes(ours)) > len(groups.weight_bytes(theirs))
  groups.assert_same_bits(groups.load(ours), groups.load(theirs))
  assert groups.records(ours) == groups.records(theirs)


@pytest.mark.parametrize('name', ['orbax', 'formats'])
def test_one_process_restores_what_two_wrote_for_orbax(alone, by_two, name):
  folder = by_two / name / 'orbax' if name == 'formats' else by_two / name
  want = groups.load(alone / 'means')
  groups.assert_same_bits(checkpoint.load(folder), want)
  if name == 'formats':
    groups.assert_same_bits(groups.load(by_two / name), want)


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
