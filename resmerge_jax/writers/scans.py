"""What scans of the inputs found, kept beside a run's journal and in the manifest."""

import collections
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from resmerge_jax.writers.disk import write_durably
from resmerge_jax.writers.partial import explained, scans_path

Found = Mapping[str, Mapping[str, np.ndarray]]  # tensor name -> arrays by name


class SavedScans(collections.UserDict[str, Found]):
  """A dict on disk: a scan that is put in survives the process.

  Args:
    output: of the merge; its run must hold the lock.
    writes: whether this process is the one that writes.

  Raises:
    InputError: the disk refuses.
  """

  def __init__(self, output: pathlib.Path, writes: bool):
    self.data = {}
    self._path, self._writes = scans_path(output), writes
    if self._path.exists():
      with explained(f'{self._path} cannot be read', self._path):
        text = self._path.read_bytes()
      self.data = {key: from_plain(found) for key, found in json.loads(text).items()}

  def __setitem__(self, key: str, found: Found) -> None:
    self.data[key] = found
    if not self._writes:
      return
    text = json.dumps({key: to_plain(each) for key, each in self.data.items()})
    with explained(f'cannot write {self._path.name}', self._path, len(text)):
      write_durably(self._path, text.encode())


def to_plain(found: Found) -> dict[str, dict[str, Any]]:
  """As JSON knows it; numbers come back exactly."""
  return {
    name: {
      key: {'dtype': x.dtype.name, 'shape': list(x.shape), 'values': x.ravel().tolist()}
      for key, x in arrays.items()
    }
    for name, arrays in found.items()
  }


def from_plain(plain: Mapping[str, Mapping[str, Any]]) -> Found:
  """What `to_plain` was given."""
  return {
    name: {
      key: np.array(x['values'], x['dtype']).reshape(x['shape'])
      for key, x in arrays.items()
    }
    for name, arrays in plain.items()
  }
