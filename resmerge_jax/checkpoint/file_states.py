"""What tells that the files a merge depends on stay what they were."""

from collections.abc import Iterable, Mapping

from resmerge_jax.checkpoint.files import Folder, ObjectState, State, each, state_of
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.errors import InputError, StoppedError

LEAVE_ALONE = 'leave the input folders alone until the run has ended, and start again'
BRING_BACK = 'see that the file can be read again, then run the same command'


def file_states(checkpoint: Checkpoint, copied: bool) -> dict[str, State]:
  """States of the configuration and the weight files, with those that are `copied`.

  Raises:
    StoppedError: a file vanished since the folder was listed.
  """
  assert checkpoint.path is not None, checkpoint.id
  names = [*checkpoint.shard_files, checkpoint.config_name]
  names += checkpoint.side_files if copied else ()
  folder = checkpoint.path
  try:
    states = each(folder, lambda name: state_of(folder / name), names)
    return dict(zip(names, states, strict=True))
  except OSError as error:
    raise StoppedError(
      f'checkpoint {checkpoint.id!r}, {error.filename} cannot be read: {error.strerror}',
      fix=BRING_BACK,
    ) from error


def check_unchanged(
  sources: Iterable[tuple[Checkpoint, Mapping[str, State]]],
) -> None:
  """Checks that every file is as it was when its state was taken.

  Raises:
    StoppedError: files vanished, and none was changed.
    InputError: files were changed.
  """
  gone, changed = [], []
  for checkpoint, states in sources:
    assert checkpoint.path is not None, checkpoint.id
    folder = checkpoint.path

    def now_of(name: str, folder: Folder = folder) -> State | OSError:
      try:
        return state_of(folder / name)
      except OSError as error:
        return error

    for name, now in zip(states, each(folder, now_of, states), strict=True):
      who = f'checkpoint {checkpoint.id!r}, {folder / name}'
      if isinstance(now, OSError):
        gone.append(f'{who} cannot be read: {now.strerror}')
      elif now != states[name]:
        changed.append(f'{who}: {_change(states[name], now)}')
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


def _change(before: State, now: State) -> str:
  if isinstance(now, ObjectState) or isinstance(before, ObjectState):
    return f'version {now[0]}, it was {before[0]}'
  time = 'its time changed' if now.mtime_ns != before.mtime_ns else 'same time'
  return f'{now.bytes} bytes, it had {before.bytes}; {time}'
