"""The lock of the partial folder: a run holds it, who looks does not disturb."""

import fcntl
import pathlib
import threading

import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.writers.partial import claim, is_live, partial_path, release


def look(output: pathlib.Path):
  """Somebody else who is just looking whether a run lives."""
  file = (partial_path(output) / 'lock').open('r')
  fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  return file


def test_a_run_is_seen_until_it_ends(tmp_path: pathlib.Path):
  output = tmp_path / 'out'
  assert not is_live(output)
  fd = claim(output)
  assert is_live(output)
  with pytest.raises(InputError, match='another merge is writing'):
    claim(output)
  release(output, fd)
  assert not is_live(output)


def test_two_who_look_do_not_take_each_other_for_a_run(tmp_path: pathlib.Path):
  output = tmp_path / 'out'
  release(output, claim(output), keep=True)
  with look(output):
    assert not is_live(output)


def test_a_run_waits_for_who_looks(tmp_path: pathlib.Path):
  output = tmp_path / 'out'
  release(output, claim(output), keep=True)
  glance = look(output)
  threading.Timer(0.1, glance.close).start()
  release(output, claim(output))
  assert not partial_path(output).exists()
