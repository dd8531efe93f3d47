"""The folder beside the output in which it is prepared, and what dead runs left there.

For an output `out`: `.out.resmerge-partial/` holds `lock` (locked while its run lives),
`new/` (the output to be) and the journals of the run, one per process;
`.out.resmerge-old/` exists only between the two renames that replace an output by its
successor.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

from resmerge_jax.errors import InputError, StoppedError
from resmerge_jax.sizes import format_size

SHARED_S = 60  # for which a network file system may not show what another host made
GLANCE_S = 0.3  # somebody who looks whether a run lives holds its lock for a moment
_LOCK, _NEW, _JOURNAL, _SCANS = 'lock', 'new', 'journal-', 'scans.json'


def partial_path(output: pathlib.Path) -> pathlib.Path:
  return output.with_name(f'.{output.name}.resmerge-partial')


def is_partial(path: pathlib.Path) -> bool:
  """Whether it is the partial folder of some output."""
  return path.name.startswith('.') and path.name.endswith('.resmerge-partial')


def old_path(output: pathlib.Path) -> pathlib.Path:
  return output.with_name(f'.{output.name}.resmerge-old')


def new_path(output: pathlib.Path) -> pathlib.Path:
  return partial_path(output) / _NEW


def journal_path(output: pathlib.Path, process: int = 0) -> pathlib.Path:
  return partial_path(output) / f'{_JOURNAL}{process:05d}.jsonl'


def journal_paths(output: pathlib.Path) -> list[pathlib.Path]:
  """Journals of all processes of a run that stopped, that of process 0 first."""
  return sorted(partial_path(output).glob(f'{_JOURNAL}*.jsonl'))


def scans_path(output: pathlib.Path) -> pathlib.Path:
  return partial_path(output) / _SCANS


def is_occupied(path: pathlib.Path) -> bool:
  """Whether `path` is there and is anything but an empty folder."""
  if not path.is_dir():
    return os.path.lexists(path)
  with os.scandir(path) as entries:
    return any(True for _ in entries)


def folder_bytes(path: pathlib.Path) -> int:
  """Bytes on disk of the files below `path`."""
  files = (file for file in path.rglob('*') if file.is_file() and not file.is_symlink())
  return sum(file.stat().st_blocks * 512 for file in files)


@contextlib.contextmanager
def explained(what: str, path: pathlib.Path, needed_bytes: int = 0) -> Iterator[None]:
  """Turns an OSError met at `path` into `StoppedError`; `what` says what failed."""
  try:
    yield
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise no_space(path, needed_bytes, str(error.strerror)) from error
    raise StoppedError(
      f'{what}: {error.strerror} ({error.filename or path})'
    ) from error


def no_space(
  path: pathlib.Path, needed_bytes: int, reason: str = 'not enough space'
) -> StoppedError:
  while not path.exists():
    path = path.parent
  free = format_size(shutil.disk_usage(path).free)
  return StoppedError(
    f'{reason} on the disk of {path}: the output takes {format_size(needed_bytes)}, '
    f'{free} free',
    fix='free some space, or choose an output on another disk',
  )


def await_shared(path: pathlib.Path) -> None:
  """Returns when this process sees what process 0 has made at `path`.

  Raises:
    InputError: it does not within SHARED_S.
  """
  end = time.monotonic() + SHARED_S
  while not path.exists():
    if time.monotonic() > end:
      raise InputError(
        f'{path} is not there for this process',
        why='process 0 has made it, and each process writes its part in there',
        fix='choose an output on a file system that all processes share, under one path',
      )
    time.sleep(0.05)
    for folder in (path.parent.parent, path.parent):
      with contextlib.suppress(OSError):
        os.listdir(
          folder
        )  # asks the server, where a name alone may be answered from memory


def is_live(output: pathlib.Path) -> bool:
  """Whether a run is preparing `output` now: it holds the lock until it ends."""
  try:
    fd = os.open(partial_path(output) / _LOCK, os.O_RDWR)
  except FileNotFoundError:
    return False
  with _closing_fd(fd):
    # Shared, so that two who only look do not take each other for a run.
    return not _try_lock(fd, output, fcntl.LOCK_SH)


def in_use(output: pathlib.Path) -> InputError:
  return InputError(
    f'another merge is writing {output}: it holds the lock in {partial_path(output)}',
    fix='wait until it ends, or choose another output',
  )


def claim(output: pathlib.Path, keep: bool = False) -> int:
  """Creates the partial folder of `output`, locked; puts back a replaced output.

  What a dead run left in it is deleted, or kept to be continued.

  Returns:
    The descriptor that holds the lock; give it to `release`.
  """
  partial = partial_path(output)
  while True:
    partial.mkdir(parents=True, exist_ok=True)
    try:
      # To lock for oneself alone, NFS wants a file that is open for writing.
      fd = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
      continue  # its run ended between the two lines
    if not _try_lock(fd, output, fcntl.LOCK_EX, GLANCE_S):
      os.close(fd)
      raise in_use(output)
    if _is_same_file(fd, partial / _LOCK):
      break
    os.close(fd)  # locked a file that its run had just deleted
  try:
    _put_back(output)
    _clear(output, keep)
  except BaseException:
    os.close(fd)
    raise
  return fd


def release(output: pathlib.Path, fd: int, keep: bool = False) -> None:
  """Gives up the lock; deletes the partial folder unless it is to be continued."""
  if not keep:
    # Whatever cannot be deleted is found and reported by the next run.
    shutil.rmtree(partial_path(output), ignore_errors=True)
  os.close(fd)


def _put_back(output: pathlib.Path) -> None:
  """Puts back an output that its run died replacing."""
  old = old_path(output)
  if old.exists():
    if is_occupied(output):
      shutil.rmtree(old)
    else:
      os.rename(old, output)


def _clear(output: pathlib.Path, keep: bool) -> None:
  """Deletes what dead runs left in the partial folder, or all but what can be continued."""
  for entry in partial_path(output).iterdir():
    if entry.name == _LOCK or (
      keep and entry.name.startswith((_NEW, _JOURNAL, _SCANS))
    ):
      continue
    if entry.is_dir():
      shutil.rmtree(entry)
    else:
      entry.unlink()


def _try_lock(fd: int, output: pathlib.Path, kind: int, patience_s: float = 0) -> bool:
  try:
    while True:
      try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        return True
      except BlockingIOError:
        if patience_s <= 0:
          return False
      patience_s -= 0.05
      time.sleep(0.05)
  except OSError as error:
    raise InputError(
      f'cannot lock files beside {output}: {error.strerror}',
      why='two merges into one output could not be told from leftovers of a dead one',
      fix='choose an output on a file system with file locks',
    ) from error


def _is_same_file(fd: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(fd), os.stat(path))
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def _closing_fd(fd: int) -> Iterator[None]:
  try:
    yield
  finally:
    os.close(fd)
