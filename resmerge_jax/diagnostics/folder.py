"""The folder of a diagnosis: complete under its name, or not there."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from resmerge_jax.diagnostics.diagnosis import Diagnosis, from_plain, to_plain
from resmerge_jax.diagnostics.table import as_csv
from resmerge_jax.errors import InputError
from resmerge_jax.writers.check import check_free
from resmerge_jax.writers.partial import explained

CSV, JSON = 'diagnostics.csv', 'diagnostics.json'


@contextlib.contextmanager
def new_folder(output: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
  """A folder to fill, which is renamed to `output` when the block ends well.

  Raises:
    InputError: something is in the way; `StoppedError`: the disk.
  """
  with explained(f'output {output} cannot be written', output):
    output.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(prefix=f'.{output.name}.', dir=output.parent)
    aside = pathlib.Path(made)
    try:
      new = aside / 'new'
      new.mkdir()  # with the rights of any folder, which mkdtemp does not give
      yield new
      check_free(output, overwrite)
      if output.exists():
        output.rename(aside / 'old')
      os.replace(new, output)
    finally:
      shutil.rmtree(aside, ignore_errors=True)


def write_data(diagnosis: Diagnosis, folder: pathlib.Path) -> None:
  """diagnostics.csv, and diagnostics.json, which `read_diagnosis` takes."""
  (folder / CSV).write_text(as_csv(diagnosis))
  plain = json.dumps(to_plain(diagnosis), indent=1, allow_nan=False)
  (folder / JSON).write_text(plain + '\n')


def read_diagnosis(folder: pathlib.Path) -> Diagnosis:
  """The diagnosis that `write_data` wrote there. Raises InputError."""
  path = folder / JSON
  try:
    return from_plain(json.loads(path.read_text()))
  except OSError as error:
    raise InputError(f'{path}: cannot be read: {error.strerror}') from error
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{path}: not a diagnosis ({error!r})',
      fix='give the output folder of tools.diagnose',
    ) from error
