"""What all commands share: help that teaches, and errors without a traceback."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from absl import app, flags, logging

from resmerge_jax.errors import InputError

_HELP_FLAGS = {'-h', '-?', '-help', '--help', '-helpshort', '--helpshort', '--helpfull'}
_SIGNALLED = 128  # plus the signal's number, as shells report it
_BROKEN_PIPE = _SIGNALLED + signal.SIGPIPE
_SWALLOWING = {'__del__', '_xla_gc_callback'}  # the second is JAX's
_SOON_S = 0.02
_SIGNALS = {signal.SIGINT: 'interrupted', signal.SIGTERM: 'terminated'}


def no_arguments(argv: list[str]) -> None:
  """Raises InputError for words that are no flags."""
  if argv[1:]:
    raise InputError(
      'unexpected arguments', argv[1:], fix='write flags as --name=value'
    )


def define_expert_ids() -> None:
  """Of commands that take --experts."""
  flags.DEFINE_list(
    'expert_ids',
    None,
    'ids of the experts (default: the names of their folders, or, where some are called '
    'alike, of those above them that tell them apart)',
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
      with _no_collecting():
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

  with _signals_raise() as received:
    try:
      app.run(guarded, flags_parser=parse)
    except KeyboardInterrupt as error:
      _end(received[-1] if received else signal.SIGINT, error)


@contextlib.contextmanager
def _no_collecting() -> Iterator[None]:
  """For imports: they leave no garbage, and looking for it takes a tenth of their time.

  Nor does later collecting look at what they made, if this is the process' first command.
  """
  was_on = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_on:
      if gc.get_freeze_count() == 0:
        gc.freeze()
      gc.enable()


@contextlib.contextmanager
def _signals_raise() -> Iterator[list[signal.Signals]]:
  """SIGTERM and Ctrl-C raise KeyboardInterrupt, and are noted in the list.

  A signal that is ignored (a command under nohup, say) stays so.
  """
  received: list[signal.Signals] = []

  def raise_now_or_soon(number: int, frame: FrameType | None) -> None:
    if number != signal.SIGALRM:
      received.append(signal.Signals(number))
    if _would_be_lost(frame):
      signal.setitimer(signal.ITIMER_REAL, _SOON_S)
    elif received:
      raise KeyboardInterrupt

  before = {n: signal.getsignal(n) for n in (*_SIGNALS, signal.SIGALRM)}
  for number, handler in before.items():
    if handler is not signal.SIG_IGN:
      signal.signal(number, raise_now_or_soon)
  try:
    yield received
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
      signal.signal(number, handler)


def _would_be_lost(frame: FrameType | None) -> bool:
  """Whether an exception raised in `frame` would end an import half done, which some
  libraries print or turn into errors of their own, or vanish in a callback of the
  garbage collector.
  """
  while frame is not None:
    code = frame.f_code
    if 'importlib._bootstrap' in code.co_filename or code.co_name in _SWALLOWING:
      return True
    frame = frame.f_back
  return False


def _end(number: signal.Signals, error: BaseException) -> NoReturn:
  print('; '.join([_SIGNALS[number], *_notes(error)]), file=sys.stderr)
  sys.exit(_SIGNALLED + number)


def _notes(error: BaseException) -> list[str]:
  return getattr(error, '__notes__', [])
