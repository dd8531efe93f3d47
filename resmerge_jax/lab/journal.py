"""What was measured of a group, kept as soon as it is known: a long comparison goes on
where it was killed.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class Journal:
  """A file of JSON lines: `about`, then a pair (what, found) for each measurement.

  Args:
    folder: where the file is, under a name that follows from `about`.
    about: what decides about all that is measured.
  """

  def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
    about_line = json.dumps(about) + '\n'
    self.file = folder / f'measured_{zlib.crc32(about_line.encode()):08x}.jsonl'
    self._found: dict[str, Any] = {}
    text = self.file.read_text() if self.file.is_file() else ''
    # A kill may cut the last line.
    lines = [line for line in text.splitlines(keepends=True) if line.endswith('\n')]
    for line in lines[1:]:
      what, found = json.loads(line)
      self._found[json.dumps(what)] = found
    if (whole := ''.join(lines) or about_line) != text:
      self.file.write_text(whole)

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
      with self.file.open('a') as stream:
        stream.write(f'{json.dumps([what, self._found[key]])}\n')
        stream.flush()
        os.fsync(stream.fileno())
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
