"""Runs that were killed: nothing loads, nothing is lost, and the next run cleans up."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from resmerge_jax.writers.folder import FolderWriter, check_output
from resmerge_jax.writers.partial import old_path, partial_path
from tests import layouts
from tests.layouts import assert_weights, listing, merge

ROOT = pathlib.Path(__file__).parents[2]


def killed(tmp_path: pathlib.Path, body: str, overwrite: bool = False) -> None:
  """Runs `body` with a writer into tmp_path / 'out', then kills it."""
  script = f"""
import os, pathlib, signal
from resmerge_jax.writers.folder import FolderWriter
from tests import layouts
def kill(*_):
  os.kill(os.getpid(), signal.SIGKILL)
writer = FolderWriter({str(tmp_path / 'out')!r}, layouts.layout(), {overwrite})
values = layouts.weights()
{textwrap.dedent(body)}
kill()
"""
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_run_leaves_nothing_loadable_and_the_next_one_cleans(tmp_path):
  output = tmp_path / 'out'
  killed(tmp_path, "writer.write('b.weight', 0, values['b.weight'])")
  assert not output.exists()
  assert listing(tmp_path) == [
    '.out.resmerge-partial/lock',
    '.out.resmerge-partial/new/model.safetensors.part',
  ]
  (note,) = check_output(output, [], 0, False)
  assert note.startswith('a run that died left ')
  assert note.endswith(f' in {partial_path(output)}: removed before writing')
  merge(output)
  assert_weights(output)
  assert os.listdir(tmp_path) == ['out']


COMMIT = """
for name, value in values.items():
  writer.write(name, 0, value)
rename = os.rename
def until(source, target):
  {order}
os.rename = until
writer.commit({{'config.json': b'{{}}'}})
"""


@pytest.mark.parametrize('overwrite', [False, True])
def test_a_run_killed_before_the_swap_leaves_the_output_as_it_was(tmp_path, overwrite):
  output = tmp_path / 'out'
  if overwrite:
    output.mkdir()
    (output / 'old.txt').touch()
  order = "kill() if str(target).endswith('config.json') else rename(source, target)"
  killed(tmp_path, COMMIT.format(order=order), overwrite)
  assert not list(tmp_path.rglob('config.json'))
  assert (listing(output) == ['old.txt']) if overwrite else not output.exists()
  merge(output, overwrite)
  assert_weights(output)
  assert os.listdir(tmp_path) == ['out']


def test_a_run_killed_between_the_renames_has_its_old_output_put_back(tmp_path):
  output = tmp_path / 'out'
  output.mkdir()
  (output / 'old.txt').touch()
  order = "rename(source, target); 'resmerge-old' in str(target) and kill()"
  killed(tmp_path, COMMIT.format(order=order), overwrite=True)
  assert not output.exists()
  assert listing(old_path(output)) == ['old.txt']
  with FolderWriter(output, layouts.layout(), overwrite=True):
    assert listing(output) == ['old.txt']
  assert os.listdir(tmp_path) == ['out']


def test_a_run_killed_before_deleting_the_old_output_is_cleaned_up(tmp_path):
  output = tmp_path / 'out'
  merge(output)
  old_path(output).mkdir()
  (old_path(output) / 'old.txt').touch()
  merge(output, overwrite=True)
  assert_weights(output)
  assert os.listdir(tmp_path) == ['out']
