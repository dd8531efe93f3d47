"""Runs a command of resmerge_jax.cli in this process, as its entry point would."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple
from unittest import mock

from absl import flags

from resmerge_jax.cli import app

_PROGRESS = re.compile(r' *\d+% of .+, about \d+ s left, at .+\n')


class Done(NamedTuple):
  """How a command ended and what it printed."""

  status: int
  out: str
  err: str


def run(command: ModuleType, *args: object) -> Done:
  """Exit status and output of `command.run()` with these arguments.

  Left out are absl's changes to logging and the compilation cache, which would
  outlive the command, and lines of progress; flags that it defines are removed again.
  """
  out, err = io.StringIO(), io.StringIO()
  words = [command.__name__, *map(str, args)]
  with contextlib.ExitStack() as stack:
    stack.enter_context(_flags_restored())
    stack.enter_context(mock.patch.object(sys, 'argv', words))
    stack.enter_context(mock.patch.object(app.app, 'run', _run))
    stack.enter_context(mock.patch.object(sys.modules['__main__'], '__doc__', None))
    for name in ('keep_programs', 'keep_jit_programs'):
      if hasattr(command, name):
        stack.enter_context(mock.patch.object(command, name))
    stack.enter_context(contextlib.redirect_stdout(out))
    stack.enter_context(contextlib.redirect_stderr(err))
    try:
      command.run()
    except SystemExit as end:
      return Done(end.code or 0, out.getvalue(), without_progress(err.getvalue()))
  raise AssertionError('a command ends by sys.exit')


def without_progress(err: str) -> str:
  """What a process printed, but for lines of progress: only a busy machine prints any."""
  return _PROGRESS.sub('', err)


def _run(main, flags_parser) -> None:
  sys.exit(main(flags_parser(sys.argv)))


@contextlib.contextmanager
def _flags_restored() -> Iterator[None]:
  app.app.define_help_flags()  # which absl does once in the life of a process
  known = set(flags.FLAGS)
  try:
    yield
  finally:
    for name in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
