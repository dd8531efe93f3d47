"""Merge RL-trained experts of one language model into one model, in JAX.

`merge(MergeConfig(...))` merges folders, `merge_state_dicts` arrays in memory,
`load_merged` folders into sharded arrays; `apply_recipe` makes a merge again. Names are
loaded on first use: importing the package imports neither JAX nor a device.
"""

import importlib
from typing import TYPE_CHECKING, Any

from resmerge_jax.version import __version__

if TYPE_CHECKING:
  from resmerge_jax.config import MergeConfig
  from resmerge_jax.errors import InputError
  from resmerge_jax.methods.resmerge_params import ResMerge
  from resmerge_jax.methods.task_arithmetic import TaskArithmetic
  from resmerge_jax.pipeline.apply_recipe import apply_recipe
  from resmerge_jax.pipeline.load_merged import load_merged
  from resmerge_jax.pipeline.merge import Manifest, merge
  from resmerge_jax.pipeline.recipe import Recipe
  from resmerge_jax.pipeline.state_dicts import MergeResult, merge_state_dicts
  from resmerge_jax.plan.rules import Rule

_HOME = {
  'InputError': 'errors',
  'Manifest': 'pipeline.merge',
  'MergeConfig': 'config',
  'MergeResult': 'pipeline.state_dicts',
  'Recipe': 'pipeline.recipe',
  'ResMerge': 'methods.resmerge_params',
  'Rule': 'plan.rules',
  'TaskArithmetic': 'methods.task_arithmetic',
  'apply_recipe': 'pipeline.apply_recipe',
  'load_merged': 'pipeline.load_merged',
  'merge': 'pipeline.merge',
  'merge_state_dicts': 'pipeline.state_dicts',
}

__all__ = [
  'InputError', 'Manifest', 'MergeConfig', 'MergeResult', 'Recipe', 'ResMerge', 'Rule',
  'TaskArithmetic', '__version__', 'apply_recipe', 'load_merged', 'merge',
  'merge_state_dicts',
]  # fmt: skip


def __getattr__(name: str) -> Any:
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
