"""Size and time of the files a merge depends on: whether they stay what they were."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.errors import InputError, StoppedError

LEAVE_ALONE = 'leave the input folders alone until the run has ended, and start again'
BRING_BACK = 'see that the file can be read again, then run the same command'


class FileState(NamedTuple):
  """What changes when somebody writes to a file: size in bytes, time in ns."""

  bytes: int
  mtime_ns: int


def state_of(file: int | pathlib.Path) -> FileState:
  """Of a descriptor or path. Raises OSError."""
  stat = os.stat(file)
  return FileState(stat.st_size, stat.st_mtime_ns)


def file_states(checkpoint: Checkpoint, copied: bool) -> dict[str, FileState]:
  """States of config.json and the weight files, with those that are `copied`.

  Raises:
    StoppedError: a file vanished since the folder was listed.
  """
  assert checkpoint.path is not None, checkpoint.id
  names = [*checkpoint.shard_files, 'config.json']
  names += checkpoint.side_files if copied else ()
  try:
    return {name: state_of(checkpoint.path / name) for name in names}
  except OSError as error:
    raise StoppedError(
      f'checkpoint {checkpoint.id!r}, {error.filename} cannot be read: {error.strerror}',
      fix=BRING_BACK,
    ) from error


def check_unchanged(
  sources: Iterable[tuple[Checkpoint, Mapping[str, FileState]]],
) -> None:
  """Checks that every file is as it was when its state was taken.

  Raises:
    StoppedError: files vanished, and none was changed.
    InputError: files were changed.
  """
  gone, changed = [], []
  for checkpoint, states in sources:
    assert checkpoint.path is not None, checkpoint.id
    for name, state in states.items():
      who = f'checkpoint {checkpoint.id!r}, {checkpoint.path / name}'
      try:
        now = state_of(checkpoint.path / name)
      except OSError as error:
        gone.append(f'{who} cannot be read: {error.strerror}')
        continue
      if now != state:
        changed.append(f'{who}: {now.bytes} bytes, it had {state.bytes}; ' + (
          'its time changed' if now.mtime_ns != state.mtime_ns else 'same time'
        ))  # fmt: skip
  if changed:
    raise InputError(
      'input files were changed while they were merged',
      changed + gone,
      why='the output would mix their old and their new content',
      fix=LEAVE_ALONE,
    )
  if gone:
    raise StoppedError(
      'input files vanished while they were merged', gone, fix=BRING_BACK
    )
