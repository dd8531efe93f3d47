"""Measurements that outlive a killed run."""

import numpy as np
import pytest

from resmerge_jax.lab.measurements import Measurements

FOUND = {'s': np.array([True, False, True]), 'nested': {'x': 0.25, 'empty': {}}}


def never():
  raise AssertionError('measured again')


def test_what_was_measured_is_kept(tmp_path):
  kept = Measurements(tmp_path, {'models': 1})
  first = kept.measured(['a', 1], lambda: FOUND)
  again = Measurements(tmp_path, {'models': 1})
  assert len(again) == 1
  for found in (first, again.measured(['a', 1], never)):
    np.testing.assert_equal(found, FOUND)
    assert found['s'].dtype == bool
  with pytest.raises(AssertionError, match='measured again'):
    again.measured(['a', 2], never)


def test_a_line_cut_by_a_kill_is_measured_again(tmp_path):
  kept = Measurements(tmp_path, {})
  kept.measured('a', lambda: 1.0)
  kept.measured('b', lambda: 2.0)
  whole = kept.file.read_bytes()
  kept.file.write_bytes(whole[:-1])  # its newline alone
  assert len(Measurements(tmp_path, {})) == 2
  for cut in range(2, len(whole.splitlines()[-1]) + 1):
    kept.file.write_bytes(whole[:-cut])
    continued = Measurements(tmp_path, {})
    assert len(continued) == 1
    assert continued.measured('b', lambda: 3.0) == 3.0
    assert Measurements(tmp_path, {}).measured('b', never) == 3.0


@pytest.mark.parametrize('left', [0, 1])
def test_a_first_line_cut_by_a_kill_is_written_again(tmp_path, left):
  kept = Measurements(tmp_path, {})
  kept.file.write_bytes(kept.file.read_bytes()[:left])
  Measurements(tmp_path, {}).measured('a', lambda: 1.0)
  assert len(Measurements(tmp_path, {})) == 1


def test_groups_of_one_seed_have_files_of_their_own(tmp_path):
  for about in ({'models': 1}, {'models': 2}):
    kept = Measurements(tmp_path, about)
    kept.measured('a', lambda about=about: about['models'])
  assert Measurements(tmp_path, {'models': 1}).measured('a', never) == 1
  assert Measurements(tmp_path, {'models': 2}).measured('a', never) == 2
