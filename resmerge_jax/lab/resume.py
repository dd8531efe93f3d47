"""The state of a long training on disk: a killed run continues from the last one."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.errors import InputError
from resmerge_jax.lab.loop import Training


class Kept(NamedTuple):
  """Where the state lies, and what a training that continues it must agree with."""

  file: pathlib.Path
  made_by: dict[str, Any]

  def write(self, training: Training, record: dict[str, Any]) -> None:
    """Replaces the state in one move: it is the old one or the new one, and whole."""
    self.file.parent.mkdir(parents=True, exist_ok=True)
    partial = self.file.with_suffix('.partial')
    about = json.dumps({'made_by': self.made_by, 'record': record}).encode()
    with partial.open('wb') as stream:
      np.save(stream, np.frombuffer(about, np.uint8))
      for leaf in jax.tree.leaves(training):
        np.save(stream, np.asarray(leaf))
      stream.flush()
      os.fsync(stream.fileno())
    partial.replace(self.file)

  def read(self, training: Training) -> tuple[Training, dict[str, Any]] | None:
    """The state and its record, shaped as `training`; None: nothing was kept.

    Raises:
      InputError: it is of another recipe or seed, but for the number of steps, on
        which no step depends.
    """
    if not self.file.is_file():
      return None
    with self.file.open('rb') as stream:
      about = json.loads(np.load(stream).tobytes())
      if _without_steps(about['made_by']) != _without_steps(self.made_by):
        raise InputError(
          f'{self.file}: of another recipe or seed',
          fix='give another --output, or delete that file',
        )
      leaves, tree = jax.tree.flatten(training)
      leaves = [jnp.asarray(np.load(stream)) for _ in leaves]
    return jax.tree.unflatten(tree, leaves), about['record']


def _without_steps(made_by: dict[str, Any]) -> dict[str, Any]:
  rl = {name: value for name, value in made_by['rl'].items() if name != 'steps'}
  return {**made_by, 'rl': rl}
