"""A sweep by several processes has the bytes of one process."""

import contextlib
import pathlib

import pytest

from resmerge_jax.cli import merge
from tests import commands, groups, launches, resumes, several
from tests.cli.merge_test import flags_of
from tests.processes.runs import DEVICES, same_files

SWEEP = ('--sweep=method.rho=0.1,0.3', '--sweep=method.beta_max=0.8,0.9')
SETTINGS = [f'rho-{rho}__beta_max-{b}' for rho in (0.1, 0.3) for b in (0.8, 0.9)]


def words_of(group, *more: str) -> list[str]:
  shards = f'--max_shard_size={several.SETTINGS["max_shard_size"]}'
  return [*flags_of(group, pathlib.Path('out')), shards, '--mesh=layer:8', *more]


@pytest.fixture(scope='module')
def swept(group, tmp_path_factory):
  """By this process, with as many devices."""
  work = tmp_path_factory.mktemp('one')
  with contextlib.chdir(work):
    done = commands.run(merge, *words_of(group, *SWEEP))
  assert done.status == 0, done.err
  return work / 'out'


def by_two(work, flags):
  words = launches.joining(2, flags)
  return launches.run(work, words, devices=DEVICES // 2)


def test_two_processes_write_the_bytes_of_one(group, swept, tmp_path):
  first, second = by_two(tmp_path / 'two', words_of(group, *SWEEP))
  assert (first.status, second.status) == (0, 0), first.err + second.err
  output = tmp_path / 'two' / 'out'
  assert sorted(path.name for path in output.iterdir() if path.is_dir()) == SETTINGS
  for name in SETTINGS:
    assert groups.weight_bytes(output / name) == groups.weight_bytes(swept / name)
    # Sums over rows, where these were cut, are added in another order.
    sums = 'records.jsonl', 'manifest.json', 'README.md'
    same_files(output / name, swept / name, *sums)
  assert {path.name for path in output.iterdir()} == {
    path.name for path in swept.iterdir()
  }


def test_what_is_complete_is_kept_and_the_rest_is_added(group, swept, tmp_path):
  work = tmp_path / 'two'
  for ended in by_two(work, words_of(group, '--sweep=method.rho=0.1', SWEEP[1])):
    assert ended.status == 0, ended.err
  before = resumes.contents(work / 'out' / SETTINGS[0])
  for ended in by_two(work, words_of(group, *SWEEP, '--resume')):
    assert ended.status == 0, ended.err
  assert resumes.contents(work / 'out' / SETTINGS[0]) == before
  for name in SETTINGS:
    assert groups.weight_bytes(work / 'out' / name) == groups.weight_bytes(swept / name)
