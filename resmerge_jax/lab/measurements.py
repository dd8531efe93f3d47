"""What was measured of a group, kept as soon as it is known: a long comparison goes on
where it was killed.
"""

import json
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from resmerge_jax.writers.journal import append, read_journal, write_journal


class Measurements:
  """A journal of pairs (what, found), one for each measurement.

  Args:
    folder: where the file is, under a name that follows from `about`.
    about: what decides about all that is measured.
  """

  def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
    self.file = folder / f'measured_{zlib.crc32(json.dumps(about).encode()):08x}.jsonl'
    _, entries = read_journal(self.file)
    self._found = {json.dumps(what): found for what, found in entries}
    write_journal(self.file, about, entries)  # without a line that a kill has cut

  def __len__(self) -> int:
    return len(self._found)

  def measured(self, what: Any, measure: Callable[[], Any]) -> Any:
    """What `measure` gives, or gave in an earlier run.

    Args:
      what: decides about the result, but for what the whole file is about.
      measure: gives numbers, bool arrays, or mappings by text of such.
    """
    key = json.dumps(what)
    if key not in self._found:
      self._found[key] = to_json(measure())
      with self.file.open('ab') as stream:
        append(stream, [(what, self._found[key])])
    return from_json(self._found[key])


def to_json(value: Any) -> Any:
  """Right answers as text, 1 or 0 per prompt."""
  if isinstance(value, Mapping):
    return {name: to_json(part) for name, part in value.items()}
  if isinstance(value, np.ndarray):
    return ''.join('01'[int(right)] for right in value)
  return value


def from_json(value: Any) -> Any:
  """What `to_json` was given."""
  if isinstance(value, dict):
    return {name: from_json(part) for name, part in value.items()}
  if isinstance(value, str):
    return np.array([digit == '1' for digit in value])
  return value
