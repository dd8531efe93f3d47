"""One group, and what one process and two make of it, for all files here."""

import pathlib

import pytest

from tests import groups, several
from tests.processes.runs import MERGES, merge_by, merge_here


@pytest.fixture(scope='session')
def group(tmp_path_factory) -> groups.Group:
  return several.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='session')
def base(group):
  return groups.load(group.base)


@pytest.fixture(scope='session')
def alone(group, tmp_path_factory) -> pathlib.Path:
  """What one process makes of eight devices, and of one."""
  work = tmp_path_factory.mktemp('alone')
  for name in ('automatic', 'layers', 'means', 'counts', 'trims'):
    merge_here(work, group, name)
  for name in ('automatic', 'rows'):
    merge_here(work / 'one_device', group, name, 1, mesh=None)
  return work


@pytest.fixture(scope='session')
def by_two(group, tmp_path_factory) -> pathlib.Path:
  work = tmp_path_factory.mktemp('two')
  merge_by(2, work, group, *MERGES, 'both')
  return work
