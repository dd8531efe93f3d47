"""Measurements that outlive a killed run."""

import numpy as np
import pytest

from resmerge_jax.lab.journal import Journal

FOUND = {'s': np.array([True, False, True]), 'nested': {'x': 0.25, 'empty': {}}}


def never():
  raise AssertionError('measured again')


def test_what_was_measured_is_kept(tmp_path):
  file = tmp_path / 'journal.jsonl'
  journal = Journal(file, {'models': 1})
  first = journal.measured(['a', 1], lambda: FOUND)
  again = Journal(file, {'models': 1})
  assert len(again) == 1
  for found in (first, again.measured(['a', 1], never)):
    np.testing.assert_equal(found, FOUND)
    assert found['s'].dtype == bool
  with pytest.raises(AssertionError, match='measured again'):
    again.measured(['a', 2], never)


def test_a_line_cut_by_a_kill_is_measured_again(tmp_path):
  file = tmp_path / 'journal.jsonl'
  journal = Journal(file, {})
  journal.measured('a', lambda: 1.0)
  journal.measured('b', lambda: 2.0)
  for cut in range(1, len(file.read_text().splitlines()[-1])):
    copy = tmp_path / f'{cut}.jsonl'
    copy.write_bytes(file.read_bytes()[:-cut])
    continued = Journal(copy, {})
    assert len(continued) == 1
    assert continued.measured('b', lambda: 3.0) == 3.0
    assert Journal(copy, {}).measured('b', never) == 3.0


def test_another_group_begins_anew(tmp_path):
  file = tmp_path / 'journal.jsonl'
  Journal(file, {'models': 1}).measured('a', lambda: 1.0)
  assert Journal(file, {'models': 2}).measured('a', lambda: 2.0) == 2.0
  assert Journal(file, {'models': 2}).measured('a', never) == 2.0
