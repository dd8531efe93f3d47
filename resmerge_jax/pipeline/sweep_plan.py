"""What headers and configurations tell of a sweep: each setting prepared, and all alike."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from resmerge_jax.checkpoint.summary import table
from resmerge_jax.config import MergeConfig
from resmerge_jax.errors import InputError
from resmerge_jax.methods.table import method_of
from resmerge_jax.pipeline.prepare import Prepared, open_group, prepare
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.sizes import format_size
from resmerge_jax.writers.check import check_space, resolved
from resmerge_jax.writers.partial import is_partial


def prepare_sweep(
  settings: Mapping[str, MergeConfig], devices: Sequence[jax.Device] | None = None
) -> dict[str, Prepared]:
  """As `prepare`, for settings of one sweep; their outputs lie in one folder.

  Raises:
    InputError: as `prepare`, or the settings do not share one plan.
  """
  configs = _with_ranks(settings)
  first = next(iter(configs.values()))
  if first.save_recipe:
    raise InputError(
      '--save_recipe: a sweep saves no recipes',
      fix='leave it out; a setting can be merged again with it, from its manifest.json',
    )
  _check_folder(first)
  opened = open_group(first)
  found = {
    name: prepare(config, devices, opened=opened, settings=len(configs))
    for name, config in configs.items()
  }
  _check_alike(found)
  unfinished = [p for p in found.values() if not p.found.complete]
  check_space(
    [resolved(p.config.output) for p in unfinished],
    sum(p.plan.bytes_written for p in unfinished),
  )
  return found


def sweep_bytes_read(prepared: Sequence[Prepared]) -> int:
  """Bytes to read for all settings: once, and for each scan that no other has made."""
  plan = prepared[0].plan
  total = sum(step.nbytes for step in plan.steps)
  for i, each in enumerate(prepared):
    shared = scans_of(each.config, [p.config for p in prepared[:i]]) is not None
    for step in each.plan.steps:
      chosen = step.stack.chosen
      own = chosen.scans
      if shared and chosen.method is not None:
        own -= len(method_of(chosen.method).scans(chosen.method))
      total += step.nbytes * own
  return total


def sweep_json(prepared: Mapping[str, Prepared]) -> dict[str, Any]:
  """Folders and bytes of a sweep, as plain data."""
  return {
    'bytes_read': sweep_bytes_read(list(prepared.values())),
    'bytes_written': sum(each.plan.bytes_written for each in prepared.values()),
    'settings': [
      {
        'name': name,
        'output': str(resolved(each.config.output)),
        'bytes_written': each.plan.bytes_written,
        'fingerprint': each.plan.fingerprint,
      }
      for name, each in prepared.items()
    ],
  }


def describe_sweep(prepared: Mapping[str, Prepared]) -> list[str]:
  """Lines: what is above is the plan of the first setting; folders and bytes of all."""
  facts = sweep_json(prepared)
  rows = [(s['output'], format_size(s['bytes_written'])) for s in facts['settings']]
  return [
    '',
    f'a sweep of {len(rows)} settings; above is the plan of the first of them',
    *table(rows),
    f'{format_size(facts["bytes_read"])} to read for all, '
    f'{format_size(facts["bytes_written"])} to write',
  ]


def scans_of(config: MergeConfig, others: Sequence[MergeConfig]) -> int | None:
  """The first of the others whose method finds in its scans what this one would."""
  for i, other in enumerate(others):
    if all(
      getattr(config, name) == getattr(other, name)
      for name in ('method', 'weights', 'seed')
    ):
      return i
  return None


def _with_ranks(settings: Mapping[str, MergeConfig]) -> dict[str, MergeConfig]:
  """The settings, with the ranks of all heads that are to be solved together."""
  ranks: set[int] = set()
  for config in settings.values():
    own = method_of(config.method).head_rank(config.method)
    ranks |= {*(config.head_ranks or ()), *([own] if own else ())}
  if len(ranks) < 2:
    return dict(settings)
  together = tuple(sorted(ranks))
  return {
    name: dataclasses.replace(config, head_ranks=together)
    for name, config in settings.items()
  }


def _check_folder(config: MergeConfig) -> None:
  """Whether the folder of the settings may take them."""
  if not config.output:
    raise InputError('no output given', fix='pass --output=DIR')
  folder = resolved(config.output).parent
  if not folder.is_dir():
    return
  held = [path.name for path in _held(folder)]
  if 'config.json' in held or 'manifest.json' in held:
    raise InputError(
      f'output {folder} is the folder of a model',
      why='a sweep writes a folder for each of its settings into its output',
      fix='choose another output folder',
    )
  if held and not (config.overwrite or config.resume):
    raise InputError(
      f'output {folder} is not empty',
      held[:5] + (['...'] if len(held) > 5 else []),
      fix='choose another output folder, or pass --resume to continue or extend the sweep '
      'in it, or --overwrite to replace its settings',
    )


def _held(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """What is there beside leftovers of runs that died."""
  return (path for path in sorted(folder.iterdir()) if not is_partial(path))


def _check_alike(prepared: Mapping[str, Prepared]) -> None:
  """Whether one reading pass, cut into the same steps, serves all settings."""
  name, first = next(iter(prepared.items()))
  wanted = _shape_of(first.config, first.plan)
  others = [
    other
    for other, each in prepared.items()
    if _shape_of(each.config, each.plan) != wanted
  ]
  if others:
    raise InputError(
      f'settings of the sweep that need another plan than {name!r}',
      others,
      why='they read other tensors, or cut them into other steps, so that one reading '
      'cannot serve all',
      fix='run merges of their own for these',
    )


def _shape_of(config: MergeConfig, plan: MergePlan) -> list[Any]:
  """What the settings of a sweep have in common."""
  bare = [
    dataclasses.replace(stack, chosen=None)  # type: ignore[arg-type]
    for stack in plan.stacks
  ]
  steps = [(s.names, s.row_start, s.row_stop, s.present) for s in plan.steps]
  whole = [stack.chosen.whole for stack in plan.stacks]
  return [
    type(config.method),
    [name for name, _ in config.post],
    bare,
    whole,
    steps,
    plan.layout.places,
  ]
