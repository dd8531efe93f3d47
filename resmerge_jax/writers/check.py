"""Whether the output can be written, found out before the first weight is read."""

import os
import pathlib
import shutil
from collections.abc import Sequence

from resmerge_jax.errors import InputError
from resmerge_jax.sizes import format_size
from resmerge_jax.writers.partial import (
  explained,
  folder_bytes,
  in_use,
  is_live,
  is_occupied,
  no_space,
  old_path,
  partial_path,
)


def check_output(
  output: str | os.PathLike,
  inputs: Sequence[pathlib.Path],
  needed_bytes: int,
  overwrite: bool,
  continues: bool = False,
) -> list[str]:
  """Checks that `output` can be written; touches nothing.

  Args:
    continues: whether what a run left that stopped is used again.

  Returns:
    Notes for the user: what will be replaced, what dead runs left and will be removed.

  Raises:
    InputError: overlaps an input, is in the way, in use or not writable; disk too small.
  """
  path = resolved(output)
  with explained(f'output {output} cannot be used', path):
    _check_apart(path, inputs)
    _check_writable(path)
    if is_live(path):
      raise in_use(path)
    check_free(path, overwrite)
    notes = _notes(path, continues)
    check_space([path], needed_bytes)
  return notes


def resolved(output: str | os.PathLike) -> pathlib.Path:
  """Absolute path of the folder meant, without links or `~`."""
  return pathlib.Path(os.path.realpath(os.path.expanduser(output)))


def _check_apart(path: pathlib.Path, inputs: Sequence[pathlib.Path]) -> None:
  """Refuses an output whose writing would change or delete an input."""
  problems = []
  for given in inputs:
    folder = resolved(given)
    if folder == path:
      problems.append(f'{given} is the output itself')
    elif path.is_relative_to(folder):
      problems.append(f'the output lies inside {given}')
    elif folder.is_relative_to(path):
      problems.append(f'{given} lies inside the output')
    elif folder.is_dir():
      linked = (f for f in folder.iterdir() if resolved(f).is_relative_to(path))
      problems += [f'{file} links into the output' for file in sorted(linked)]
  if problems:
    raise InputError(
      f'output {path} and the inputs overlap',
      problems,
      why='writing the output would change or delete what is being merged',
      fix='choose an output folder outside every input',
    )


def check_free(path: pathlib.Path, overwrite: bool) -> None:
  """Refuses what may not, or cannot, be replaced."""
  elsewhere = 'choose another output folder'
  if path.exists() and not path.is_dir():
    raise InputError(f'output {path} is a file', fix=elsewhere)
  if os.path.ismount(path):
    raise InputError(
      f'output {path} is a mount point',
      why='the finished folder is renamed into place, which cannot replace a mount',
      fix='give a folder inside it',
    )
  moved = old_path(path)
  holder = path if is_occupied(path) else moved if moved.exists() else None
  if holder is None:
    return
  if not overwrite:
    raise InputError(
      f'output {path} is not empty'
      + (f': a run died replacing it, its content is {moved}' * (holder == moved)),
      why='its files would be lost or mixed with the new ones',
      fix=elsewhere
      + (', rename that folder back' * (holder == moved))
      + ', or pass --overwrite to replace all of it',
    )
  places = {'home': os.path.expanduser('~'), 'current': os.getcwd()}
  for kind, place in places.items():
    if resolved(place).is_relative_to(path):
      raise InputError(
        f'output {path} holds the {kind} folder',
        why='--overwrite deletes everything in the output folder',
        fix=elsewhere,
      )


def _existing_parent(path: pathlib.Path) -> pathlib.Path:
  """The nearest folder above `path` that is there."""
  parent = path.parent
  while not os.path.lexists(parent):
    parent = parent.parent
  return parent


def _check_writable(path: pathlib.Path) -> None:
  parent = _existing_parent(path)
  problem = ''
  if not parent.is_dir():
    problem = f'{parent} is a file'
  elif not os.access(parent, os.W_OK | os.X_OK):
    problem = f'no permission to write in {parent}'
  if problem:
    raise InputError(
      f'output {path} cannot be created: {problem}',
      why='the output is prepared in a folder beside it',
      fix='choose another output folder',
    )


def check_space(outputs: Sequence[pathlib.Path], needed_bytes: int) -> None:
  """Raises StoppedError unless the disk has room for outputs that lie in one folder."""
  if not outputs:
    return
  parent = _existing_parent(outputs[0])
  free = shutil.disk_usage(parent).free
  for leftovers in map(partial_path, outputs):
    if leftovers.exists():  # removed, or written again in place
      free += folder_bytes(leftovers)
  if needed_bytes > free:
    raise no_space(parent, needed_bytes)


def _notes(path: pathlib.Path, continues: bool) -> list[str]:
  notes = []
  partial, old = partial_path(path), old_path(path)
  if partial.exists():
    size = format_size(folder_bytes(partial))
    use = 'continued' if continues else 'removed before writing'
    notes.append(f'a run that died left {size} in {partial}: {use}')
  if old.exists() and is_occupied(path):
    notes.append(f'a run that died left the output it replaced, {old}: removed')
  elif old.exists():
    notes.append(f'a run died replacing {path}: its content is put back from {old}')
  if is_occupied(path) or old.exists():
    notes.append(f'{path} is replaced when the new output is complete (--overwrite)')
  return notes
