"""A small merge that has every kind of step, and what its output must be."""

import json
import pathlib
import shutil
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.errors import InputError
from resmerge_jax.plan.step_sizes import PROCESS_BYTES
from resmerge_jax.writers.journal import Journal
from tests import groups

RULES = (
  resmerge_jax.Rule('norm', 'base', 'kept'),
  resmerge_jax.Rule('embed|lm_head', 'task_arithmetic', 'tokens'),
  resmerge_jax.Rule('', 'method', 'matrix'),
)
# Blocks of rows, stacks in several steps, several files.
SETTINGS: dict[str, Any] = {
  'rules': RULES,
  'memory_budget': PROCESS_BYTES + 24_000,
  'max_shard_size': '10kB',
}
VARYING = ('seconds', 'peak_memory_bytes')  # of two equal merges


def tensors(seed: int) -> dict[str, np.ndarray]:
  """Head and embedding are equal, and so is what two experts make of them."""
  rng = np.random.default_rng(seed)
  shapes = {'model.embed_tokens.weight': (500, 16), 'model.norm.weight': (16,)}
  for layer in range(5):
    shapes[f'model.layers.{layer}.mlp.up_proj.weight'] = (16, 16)
  found = {
    name: rng.normal(size=shape).astype(ml_dtypes.bfloat16)
    for name, shape in shapes.items()
  }
  return {**found, 'lm_head.weight': found['model.embed_tokens.weight']}


def write_group(path: pathlib.Path) -> groups.Group:
  """A base and three experts, two of them twins: their merge warns."""
  return groups.write(path, tensors(0), [tensors(1), tensors(2), tensors(1)])


def contents(output: pathlib.Path) -> dict[str, Any]:
  """All files of an output, the manifest without times and memory."""
  files = (path for path in output.rglob('*') if path.is_file())
  found: dict[str, Any] = {
    path.relative_to(output).as_posix(): path.read_bytes() for path in files
  }
  manifest = json.loads(found['manifest.json'])
  found['manifest.json'] = {k: v for k, v in manifest.items() if k not in VARYING}
  return found


def partial(output: pathlib.Path) -> pathlib.Path:
  return output.with_name(f'.{output.name}.resmerge-partial')


def lines(output: pathlib.Path) -> list[str]:
  """Of the journal of a run that stopped; the first is its identity."""
  return (partial(output) / 'journal-00000.jsonl').read_text().splitlines()


def replace_folder(source: pathlib.Path, target: pathlib.Path) -> None:
  shutil.rmtree(target, ignore_errors=True)
  shutil.copytree(source, target)


def resume(
  group: groups.Group, output: pathlib.Path, **settings: Any
) -> resmerge_jax.Manifest:
  return groups.merge(group, output, resume=True, **{**SETTINGS, **settings})


def stop(
  group: groups.Group,
  output: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  n_steps: int = 7,
  error: Any = KeyboardInterrupt,
  **settings: Any,
) -> BaseException:
  """A run that ends by `error` when it has finished `n_steps`."""
  add, added = Journal.add, []

  def stopping(self, entry, files):
    if len(added) == n_steps:
      raise error
    added.append(entry)
    add(self, entry, files)

  with monkeypatch.context() as patch:
    patch.setattr(Journal, 'add', stopping)
    expected = error if isinstance(error, type) else type(error)
    with pytest.raises((expected, InputError)) as caught:
      groups.merge(group, output, **{**SETTINGS, **settings})
  return caught.value
