"""A process is measured from outside, with its children."""

import os
import sys

import pytest

from resmerge_jax.bench import floor, process
from resmerge_jax.errors import InputError

MB = 10**6
PARENT = """
import subprocess, sys, time
mine = b'x' * 60_000_000
hold = "import time; held = b'x' * 50_000_000; time.sleep(0.6)"
subprocess.run([sys.executable, '-c', hold], check=True)
print('done')
"""


def run(tmp_path, script):
  return process.run('it', [sys.executable, '-c', script], os.environ, tmp_path)


def test_time_memory_and_output(tmp_path):
  found = run(tmp_path, PARENT)

  assert found.stdout == 'done\n'
  assert 0.6 < found.seconds < 20
  assert found.others >= 0
  assert 110 * MB < found.anonymous < 160 * MB  # both processes
  assert found.anonymous < found.resident < 250 * MB


def test_own_work_is_not_that_of_others(tmp_path, monkeypatch):
  work = 'import time; end = time.process_time() + 0.5\nwhile time.process_time() < end: pass'
  total = iter([100, 160])  # in hundredths of a second, all cores
  stat = tmp_path / 'stat'

  def busy():
    stat.write_text(f'cpu  {next(total)} 0 0 5 5 0 0 0 0 0\n')
    return real()

  real = process.busy_seconds
  monkeypatch.setattr(process, '_PROC', tmp_path)
  monkeypatch.setattr(process, 'busy_seconds', busy)
  monkeypatch.setattr(os, 'sysconf', {'SC_CLK_TCK': 100}.__getitem__)
  found = run(tmp_path, work)
  assert 0.5 <= found.cpu < 1
  assert 0 <= found.others * found.seconds < 0.1
  assert (found.resident, found.anonymous) == (None, None)  # no /proc/PID there


def test_a_failure_shows_the_last_lines(tmp_path):
  with pytest.raises(InputError) as error:
    run(tmp_path, "print('out'); raise ValueError('no luck')")
  text = str(error.value)
  assert text.startswith('it: the process ended with status 1')
  assert '- out' in text
  assert text.endswith('ValueError: no luck')


def test_floor_reads_everything_and_writes_new_files(tmp_path, monkeypatch):
  monkeypatch.setattr(floor, 'CHUNK', 1000)
  source = tmp_path / 'in'
  source.write_bytes(bytes(2500))
  asked = []
  preadv = os.preadv

  def counted(fd, buffers, offset):
    asked.append((offset, len(buffers[0])))
    return preadv(fd, buffers, offset)

  monkeypatch.setattr(os, 'preadv', counted)
  floor.read_all([source])
  assert sorted(asked) == [(0, 1000), (1000, 1000), (2000, 500)]

  sizes = {str(tmp_path / 'o/a'): 2001, str(tmp_path / 'o/b'): 1000}
  seconds = floor.write_all(sizes)
  assert {p.name: p.stat().st_size for p in (tmp_path / 'o').iterdir()} == {
    'a': 2001,
    'b': 1000,
  }
  assert seconds.keys() == {'write', 'sync'}
  assert any((tmp_path / 'o/a').read_bytes()[1000:])
  with pytest.raises(FileExistsError):
    floor.write_all(sizes)
