"""Merges of a group in memory, and their accuracy."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.memory import MemoryReader, memory_checkpoint
from resmerge_jax.lab.answers import is_right, prompts_of
from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.variants import Entry
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.load import load_decoder, read_decoder
from resmerge_jax.models.save import hf_tensors
from resmerge_jax.pipeline.state_dicts import MergeResult, merge_state_dicts

Tensors = Mapping[str, np.ndarray]
Right = dict[str, np.ndarray]  # of a task: bool [Q], whether each answer is right
_STORED = {'bf16': np.dtype(ml_dtypes.bfloat16), 'fp32': np.dtype(np.float32)}


class Precision(NamedTuple):
  """bf16 or fp32: of the models that are read, and of the merges that are measured."""

  models: str
  merges: str

  @property
  def name(self) -> str:
    return '_'.join(dict.fromkeys(self))


class Loaded(NamedTuple):
  """A group's weights in float32, as one precision stores them."""

  recipe: GroupRecipe
  precision: Precision
  config: Mapping[str, Any]
  base: Tensors
  experts: Mapping[str, Tensors]


def load_group(
  recipe: GroupRecipe,
  folder: pathlib.Path,
  precision: Precision,
  experts: Sequence[str],
) -> Loaded:
  paths = {name: folder / name / precision.models for name in ('base', *experts)}
  tensors = {
    name: dict(hf_tensors(load_decoder(path, param_dtype='float32')))
    for name, path in paths.items()
  }
  config = open_checkpoint(paths['base'], role='base').config
  return Loaded(recipe, precision, config, tensors.pop('base'), tensors)


def merged(group: Loaded, entry: Entry) -> MergeResult:
  """The merge in float32."""
  return merge_state_dicts(
    group.base,
    group.experts,
    entry.method['name'],
    entry.params,
    post=entry.post,
  )


def lengthened(group: Loaded, tensors: Tensors, factor: float) -> dict[str, np.ndarray]:
  """The update times `factor`, on every tensor."""
  base = group.base
  return {name: base[name] + factor * (x - base[name]) for name, x in tensors.items()}


def score_merge(
  group: Loaded,
  tensors: Tensors,
  *,
  test: bool = True,
  tasks: Sequence[str] | None = None,
) -> Right:
  """Right answers to test prompts, or to the checks' prompts."""
  model = _decoder(group, tensors)
  recipe = group.recipe
  count = recipe.test_prompts if test else recipe.check_prompts
  return {
    task: is_right(model, prompts_of(task, count, test=test))
    for task in tasks or recipe.tasks
  }


def best_length(group: Loaded, tensors: Tensors) -> float:
  """The factor with the best mean accuracy on training prompts; the smallest of ties."""

  def accuracy(factor: float) -> float:
    found = score_merge(group, lengthened(group, tensors, factor), test=False)
    return float(np.mean([right.mean() for right in found.values()]))

  return max(group.recipe.lengths, key=accuracy)


def _decoder(group: Loaded, tensors: Tensors) -> Decoder:
  """As merges are stored, computed in float32."""
  dtype = _STORED[group.precision.merges]
  stored = {name: x.astype(dtype) for name, x in tensors.items()}
  checkpoint = memory_checkpoint(stored, 'merged', group.config)
  return read_decoder(checkpoint, MemoryReader(stored, 'merged'), param_dtype='float32')
