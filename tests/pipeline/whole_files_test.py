"""Steps of one weight file each, and who writes which file."""

import collections

import pytest

from resmerge_jax.pipeline.prepare import prepare
from resmerge_jax.pipeline.whole_files import by_file, owners
from tests import groups, several


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
  path = tmp_path_factory.mktemp('plan')
  group = several.write_group(path / 'in')
  settings = {**several.SETTINGS, 'max_shard_size': '20kB'}  # a layer per file
  return prepare(groups.config_of(group, path / 'out', **settings)).plan


def rows_of(plan) -> collections.Counter:
  """How often each row of each tensor is in a step."""
  return collections.Counter(
    (name, row)
    for step in plan.steps
    for name in step.names
    for row in range(step.row_start, step.row_stop)
  )


def test_steps_of_one_file(plan):
  cut = by_file(plan)
  assert rows_of(cut) == rows_of(plan)
  files = [{plan.layout.where[name].file for name in step.names} for step in cut.steps]
  assert all(len(names) == 1 for names in files)
  order = [name for (name,) in files]
  assert list(dict.fromkeys(order)) == [shard.name for shard in plan.layout.shards]
  assert order == sorted(order)  # file after file
  assert all(len(step.names) <= step.stack.layers for step in cut.steps)
  assert {id(step.stack) for step in cut.steps} == {
    id(step.stack) for step in plan.steps
  }
  assert cut.fingerprint != plan.fingerprint
  assert len(cut.steps) > len(plan.steps)


@pytest.mark.parametrize('n', [1, 2, 3, 50])
def test_files_are_shared_out_by_bytes(plan, n):
  whose = owners(plan, n)
  sizes = {shard.name: shard.nbytes for shard in plan.layout.shards}
  assert whose.keys() == sizes.keys()
  loads = collections.Counter(dict.fromkeys(range(n), 0))
  for name, process in whose.items():
    loads[process] += sizes[name]
  assert set(loads) == set(range(n))
  # Nobody has more than the mean and one file.
  assert max(loads.values()) <= sum(sizes.values()) / n + max(sizes.values())
