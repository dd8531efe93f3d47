"""Reading passes before a merge, for what a method must know beyond one tensor."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.model_config import ties_embeddings
from resmerge_jax.checkpoint.tied_head import find_head
from resmerge_jax.methods.base import Findings, Scan, TensorFacts
from resmerge_jax.methods.table import method_of, post_of
from resmerge_jax.pipeline.fetched import held_numbers
from resmerge_jax.pipeline.kernel_spec import ScanAt
from resmerge_jax.pipeline.loop import Done, run_steps
from resmerge_jax.pipeline.work import Work, computes
from resmerge_jax.plan.rules import layer_count, layer_counts, layer_number
from resmerge_jax.plan.stacks import Step
from resmerge_jax.processes import gathered

Sums = dict[str, dict[str, np.ndarray]]  # tensor name -> sums; '' for the whole model


def run_scans(work: Work, seconds: dict[str, float]) -> None:
  """Puts into `work.found` what the scans in the plan find: methods', then posts'.

  Reads the tensors of a method once per scan, also those that an earlier run merged,
  unless `work.scans` has it already. Post-processors with scans get every tensor.
  """
  # Rows that the base lacks are not merged by the method.
  steps = [s for s in work.plan.steps if computes(s) and s.present[0]]
  for params in dict.fromkeys(s.stack.chosen.method for s in steps):
    own = [s for s in steps if s.stack.chosen.method == params]
    _run(work, own, params, method_of(params).scans(params), None, seconds)
  for params in dict.fromkeys(p for s in steps for p in s.stack.chosen.post):
    _run(work, steps, params, post_of(params).scans(params), params, seconds)


def _run(
  work: Work,
  steps: list[Step],
  params: Any,
  scans: Sequence[Scan],
  post: Any,
  seconds: dict[str, float],
) -> None:
  """The scans of a method, or of the post-processor `post`, over its steps."""
  if not scans:
    return
  facts = _facts(work.group, [name for step in steps for name in step.names])
  before: Findings = {}
  for number, scan in enumerate(scans):
    key = f'scan {number} of {params!r}'
    if key not in work.scans:
      totals = _measure(work, steps, ScanAt(number, post), scan, facts, seconds)
      work.scans[key] = scan.finish(totals, facts, params, before)
    before = _joined(before, work.scans[key])
    for step in steps:
      found = work.found.setdefault(step.stack.chosen.method, {})
      for name in step.names:
        more = {**before.get('', {}), **before.get(name, {})}
        found[name] = {**found.get(name, {}), **more}


def _joined(before: Findings, now: Findings) -> Findings:
  """Both findings of each tensor, and of all."""
  return {
    name: {**before.get(name, {}), **now.get(name, {})} for name in {**before, **now}
  }


def _facts(group: ExpertGroup, names: Iterable[str]) -> dict[str, TensorFacts]:
  counts = layer_counts(group.names)
  is_tied = ties_embeddings(group.base.config) and find_head(group.base) is None
  return {
    name: TensorFacts(
      shape=tuple(group.out_shape(name)),
      layer=layer_number(name),
      n_layers=layer_count(counts, name),
      copies=2 if is_tied and name.endswith('embed_tokens.weight') else 1,
    )
    for name in names
  }


def _measure(
  work: Work,
  steps: list[Step],
  at: ScanAt,
  scan: Scan,
  facts: Mapping[str, TensorFacts],
  seconds: dict[str, float],
) -> Sums:
  """Sums of one scan over all steps and processes."""
  counted: Sums = {}  # integers: their order does not matter
  blocks: dict[tuple[str, int], dict[str, np.ndarray]] = {}  # floating sums, apart

  def add(sums: Sums, name: str, values: Mapping[str, np.ndarray]) -> None:
    times = facts[name].copies if scan.copies else 1
    _add(sums, '' if scan.whole_model else name, values, times)

  def finish(done: Done) -> None:
    layers, owned, numbers = held_numbers(done.step, done.result)
    done.give_back()
    for at, layer in enumerate(layers):
      if owned[at]:
        name, of_layer = done.step.names[layer], {k: x[at] for k, x in numbers.items()}
        add(counted, name, _of_kind('iu', of_layer, np.int64))
        floating = _of_kind('f', of_layer, np.float64)
        if floating:
          blocks[name, done.step.row_start] = floating
    work.progress(done.step.label, 0)

  run_steps(work, [s for s in steps if work.takes_part(s)], finish, seconds, at)
  sums: Sums = {}
  parts = [(counted, blocks)] if work.alone else gathered((counted, blocks))
  for of_process, _ in parts:
    for name, values in of_process.items():
      _add(sums, name, values)
  # In one order whoever computed them, as rounding depends on it.
  for (name, _), values in sorted(
    {k: x for _, b in parts for k, x in b.items()}.items()
  ):
    add(sums, name, values)
  return sums


def _add(
  sums: Sums, name: str, values: Mapping[str, np.ndarray], times: int = 1
) -> None:
  into = sums.setdefault(name, {})
  for key, value in values.items():
    into[key] = into.get(key, 0) + times * value


def _of_kind(kind: str, values: Mapping[str, np.ndarray], wide: Any) -> dict[str, Any]:
  """Those of integer or floating kind, as wide numbers."""
  return {k: x.astype(wide) for k, x in values.items() if x.dtype.kind in kind}
