"""What the tests of stopped and resumed merges share."""

import os
import pathlib
import shutil

import pytest

from tests import groups, resumes


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
  for path in place.parent.iterdir():  # of another test, if one came first
    shutil.rmtree(path)
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
