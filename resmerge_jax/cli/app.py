"""What all commands share: help that teaches, and errors without a traceback."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from absl import app, flags, logging

from resmerge_jax.errors import InputError

_HELP_FLAGS = {'-h', '-?', '-help', '--help', '-helpshort', '--helpshort', '--helpfull'}
_SIGNALLED = 128  # plus the signal's number, as shells report it
_BROKEN_PIPE = _SIGNALLED + signal.SIGPIPE


class TerminatedError(KeyboardInterrupt):
  """SIGTERM, which ends a command as Ctrl-C does: cleaning up on the way."""


def no_arguments(argv: list[str]) -> None:
  """Raises InputError for words that are no flags."""
  if argv[1:]:
    raise InputError(
      'unexpected arguments', argv[1:], fix='write flags as --name=value'
    )


def run_app(
  main: Callable[[list[str]], int | None],
  doc: str | None,
  error_status: int = 1,
  define: Callable[[list[str]], list[str]] = list,
) -> None:
  """Parses the flags and calls `main(argv)`; `doc` heads the text of --help.

  `define(argv)` may define flags and returns the arguments left to parse.

  Exits with what `main` returns (None: 0). An InputError or a wrong flag is printed to
  stderr, with its notes, and exits with `error_status`; SIGTERM and Ctrl-C end in one
  line and 128 + the signal's number; any other exception is a defect and keeps its
  traceback. --help lists the flags that modules of this package have defined.
  """
  logging.set_verbosity(logging.WARNING)  # JAX tells about absent backends
  sys.modules['__main__'].__doc__ = doc  # where absl takes the text from

  def guarded(argv: list[str]) -> int:
    try:
      status = main(argv) or 0
      sys.stdout.flush()
      return status
    except InputError as error:
      print('\n'.join([f'error: {error}', *_notes(error)]), file=sys.stderr)
      return error_status
    except BrokenPipeError:  # the reader, `head` say, has seen enough
      # Python flushes stdout once more as it exits; give it somewhere to go.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return _BROKEN_PIPE

  def parse(argv: list[str]) -> list[str]:
    app.define_help_flags()
    try:
      rest = define(argv)
      for module, defined in flags.FLAGS.flags_by_module_dict().items():
        for flag in defined if module.startswith('resmerge_jax.cli.') else ():
          flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
      return flags.FLAGS(rest)
    except InputError as error:
      print(f'error: {error}', file=sys.stderr)
      sys.exit(error_status)
    except flags.Error as error:
      print(f'error: {error}\nPass --help to see the flags.', file=sys.stderr)
      sys.exit(error_status)
    except SystemExit:
      # absl leaves with 1 after showing help, which was asked for and worked.
      sys.exit(0 if _HELP_FLAGS.intersection(argv) else error_status)

  before = signal.signal(signal.SIGTERM, _terminate)
  try:
    app.run(guarded, flags_parser=parse)
  except KeyboardInterrupt as error:
    by_term = isinstance(error, TerminatedError)
    what = 'terminated' if by_term else 'interrupted'
    print('; '.join([what, *_notes(error)]), file=sys.stderr)
    sys.exit(_SIGNALLED + (signal.SIGTERM if by_term else signal.SIGINT))
  finally:
    signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
  del number, frame
  raise TerminatedError


def _notes(error: BaseException) -> list[str]:
  return getattr(error, '__notes__', [])
