"""How every command ends: its status, and one message instead of a traceback."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = """
from resmerge_jax.cli.app import run_app
from resmerge_jax.errors import InputError

def main(argv):
  {body}

run_app(main, 'Does a thing.', error_status=2)
"""


def run(body, *args):
  return subprocess.run(
    [sys.executable, '-c', SCRIPT.format(body=body), *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ('body', 'status', 'message'),
  [
    ('pass', 0, ''),
    ('return 7', 7, ''),
    (
      "raise InputError('bad', ['a'], fix='b')",
      2,
      'error: bad\n  - a\nWhat to do: b\n',
    ),
    ('raise KeyboardInterrupt', 130, 'interrupted\n'),
    ('import os, signal; os.kill(os.getpid(), signal.SIGINT)', 130, 'interrupted\n'),
    ('import os, signal; os.kill(os.getpid(), signal.SIGTERM)', 143, 'terminated\n'),
  ],
)
def test_status_and_message(body, status, message):
  done = run(body)
  assert (done.returncode, done.stderr) == (status, message)


LOSES_IT = """
import os, signal, time
try:
  os.kill(os.getpid(), signal.SIGTERM)
except BaseException:  # as compiled modules do when an import of theirs fails
  raise ImportError from None
after = 1
"""


def test_a_signal_during_an_import_waits_for_its_end(tmp_path):
  (tmp_path / 'loses_it.py').write_text(LOSES_IT)
  done = run(
    f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import loses_it, time; '
    'print(loses_it.after); time.sleep(60)'
  )
  assert (done.returncode, done.stdout, done.stderr) == (143, '1\n', 'terminated\n')


def test_notes_of_an_error_are_printed():
  done = run("error = InputError('bad'); error.add_note('kept'); raise error")
  assert (done.returncode, done.stderr) == (2, 'error: bad\nkept\n')


def test_defects_keep_their_traceback():
  done = run("raise ValueError('ours')")
  assert done.returncode == 1
  assert 'Traceback' in done.stderr


def test_wrong_flag():
  done = run('pass', '--nonsense')
  assert done.returncode == 2
  assert "error: Unknown command line flag 'nonsense'" in done.stderr
  assert 'Traceback' not in done.stderr


def test_reader_that_goes_away():
  closed = 'import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1)'
  done = run(f"{closed}; print('x' * 10**6)")
  assert (done.returncode, done.stderr) == (141, '')
