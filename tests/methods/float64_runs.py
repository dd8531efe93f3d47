"""Runs of methods that want 64-bit types, and no heads."""

import contextlib
import functools
from typing import Any

import jax
import numpy as np

from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import apply_update
from resmerge_jax.methods.table import method_of
from tests.methods import groups


def precision_of(params: Any) -> contextlib.AbstractContextManager[None]:
  """In which a method is traced and run: with 64-bit types if it wants them."""
  return jax.enable_x64(method_of(params).float64)


def from_stored(params: Any, stored: TaskVectors) -> tuple[jax.Array, dict[str, Any]]:
  """The update as a matrix, and stats."""
  update, stats = method_of(params).merge(
    stored, None, context=groups.context(len(stored)), family=None, params=params
  )
  return apply_update(update, stored), stats


@functools.cache
def _program(params: Any) -> Any:
  return groups.compiled(
    lambda delta_NxRxC: from_stored(params, groups.task_vectors(delta_NxRxC))
  )


def merged(params: Any, delta_NxRxC: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
  """Update and stats on the host, with the branch by its name."""
  with precision_of(params):
    update_RxC, stats = jax.tree.map(np.asarray, _program(params)(delta_NxRxC))
  assert update_RxC.dtype == np.float32
  assert all(x.dtype in (np.float32, np.int32) for x in stats.values())
  if 'branch' in stats:
    stats['branch'] = method_of(params).branches[stats['branch']]
  return update_RxC, stats
