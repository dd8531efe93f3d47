"""Reading passes before a merge, for what a method must know beyond one tensor."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.model_config import ties_embeddings
from resmerge_jax.checkpoint.tied_head import find_head
from resmerge_jax.methods.base import Scan, TensorFacts
from resmerge_jax.methods.table import method_of
from resmerge_jax.pipeline.context import Found
from resmerge_jax.pipeline.fetched import held_numbers
from resmerge_jax.pipeline.loop import Done, run_steps
from resmerge_jax.pipeline.work import Work
from resmerge_jax.plan.rules import layer_count, layer_of
from resmerge_jax.plan.stacks import Step
from resmerge_jax.processes import gathered

Sums = dict[str, dict[str, np.ndarray]]  # tensor name -> sums; '' for the whole model


def run_scans(work: Work, seconds: dict[str, float]) -> dict[Any, Found]:
  """What the scans of every method in the plan find, by the method's parameters.

  Reads the tensors of a method once per scan, also those that an earlier run merged,
  unless `work.scans` has it already.
  """
  found: dict[Any, Found] = {}
  for params in dict.fromkeys(s.stack.chosen.method for s in work.plan.steps):
    scans = method_of(params).scans(params) if params else ()
    steps = [s for s in work.plan.steps if _is_scanned(s, params)] if scans else []
    facts = _facts(work.group, [name for step in steps for name in step.names])
    for number, scan in enumerate(scans):
      key = f'scan {number} of {params!r}'
      if key not in work.scans:
        so_far = dataclasses.replace(work, found=found)
        totals = _measure(so_far, steps, number, scan, facts, seconds)
        work.scans[key] = scan.finish(totals, facts, params)
      now = work.scans[key]
      found[params] = {name: now.get(name, now.get('', {})) for name in facts}
  return found


def _is_scanned(step: Step, params: Any) -> bool:
  """Whether the method gets these rows; those that the base lacks it does not."""
  return step.stack.chosen.method == params and step.present[0]


def _facts(group: ExpertGroup, names: Iterable[str]) -> dict[str, TensorFacts]:
  n_layers = layer_count(group.names)
  is_tied = ties_embeddings(group.base.config) and find_head(group.base) is None
  return {
    name: TensorFacts(
      shape=tuple(group.out_shape(name)),
      layer=-1 if (at := layer_of(name)) is None else at,
      n_layers=n_layers,
      copies=2 if is_tied and name.endswith('embed_tokens.weight') else 1,
    )
    for name in names
  }


def _measure(
  work: Work,
  steps: list[Step],
  number: int,
  scan: Scan,
  facts: Mapping[str, TensorFacts],
  seconds: dict[str, float],
) -> Sums:
  """Sums of one scan over all steps and processes."""
  blocks: dict[tuple[str, int], dict[str, np.ndarray]] = {}

  def finish(done: Done) -> None:
    layers, owned, numbers = held_numbers(done.step, done.result)
    done.give_back()
    for at, layer in enumerate(layers):
      if owned[at]:
        key = done.step.names[layer], done.step.row_start
        blocks[key] = {k: _wide(x[at]) for k, x in numbers.items()}
    work.progress(done.step.label, 0)

  run_steps(work, [s for s in steps if work.takes_part(s)], finish, seconds, number)
  sums: Sums = {}
  # In one order whoever computed them, as rounding depends on it.
  merged = {k: x for part in gathered(blocks) for k, x in part.items()}
  for (name, _), values in sorted(merged.items()):
    times = facts[name].copies if scan.whole_model else 1
    into = sums.setdefault('' if scan.whole_model else name, {})
    for key, value in values.items():
      into[key] = into[key] + times * value if key in into else times * value
  return sums


def _wide(x: np.ndarray) -> np.ndarray:
  return x.astype(np.int64 if x.dtype.kind in 'iu' else np.float64)
