"""Merges every step of a sweep: each is read once, and computed for all settings."""

import functools
from collections.abc import Mapping, Sequence

import jax

from resmerge_jax.config import MergeConfig
from resmerge_jax.methods.base import Findings
from resmerge_jax.methods.table import post_of
from resmerge_jax.pipeline.loop import WAITS, Done, run_steps
from resmerge_jax.pipeline.records import Records
from resmerge_jax.pipeline.scan import run_scans
from resmerge_jax.pipeline.stream import Output, finish_turn, restored
from resmerge_jax.pipeline.sweep_plan import scans_of
from resmerge_jax.pipeline.turns import Turn, Wanted, turns_of
from resmerge_jax.pipeline.work import Work, computes
from resmerge_jax.plan.stacks import Step


def unfinished_steps(works: Sequence[Work]) -> list[int]:
  """Places in the plan of the steps that some setting still has to write here."""
  first = works[0]
  return [
    i
    for i, step in enumerate(first.plan.steps)
    if first.takes_part(step) and not all(i in work.finished for work in works)
  ]


def stream_sweep(
  works: Sequence[Work], configs: Sequence[MergeConfig]
) -> tuple[list[Records], dict[str, float]]:
  """Merges what no earlier run has, for all settings. Returns records and seconds.

  The steps of all plans are alike. The first of `works` shows the progress.

  Raises:
    InputError: NaN or Inf in an input or in an output, or the disk fails.
  """
  records = [restored(work) for work in works]
  seconds = dict.fromkeys(WAITS, 0.0)
  todo = unfinished_steps(works)
  if todo:
    for i, work in enumerate(works):
      like = scans_of(configs[i], configs[:i])
      if like is not None:
        _take_scans(work, works[like].scans, configs[like])
      run_scans(work, seconds)
  first = works[0]
  places = {id(step): i for i, step in enumerate(first.plan.steps)}

  def turns(step: Step) -> tuple[Turn, ...]:
    at = places[id(step)]
    wanted = [_wanted(work, work.plan.steps[at]) for work in works]
    return turns_of(wanted, [at not in work.finished for work in works])

  def finish(done: Done) -> None:
    at = places[id(done.step)]
    outputs = [
      Output(works[i], records[i], works[i].plan.steps[at]) for i in done.turn.settings
    ]
    finish_turn(done, outputs)
    if done.last:
      first.progress(done.step.label, done.step.nbytes)

  steps = [first.plan.steps[i] for i in todo]
  run_steps(first, steps, finish, seconds, turns=turns)
  return records, seconds


def _wanted(work: Work, step: Step) -> Wanted:
  """What one setting computes of a step, and what its result depends on."""
  context = functools.partial(work.context, step)
  if not computes(step):
    return Wanted(None, context, work.seed, None)
  spec = work.spec(step)
  arrays = jax.tree.leaves(context(len(step.names)))
  key = spec, work.seed, tuple(array.tobytes() for array in arrays)
  return Wanted(spec, context, work.seed, key)


def _take_scans(work: Work, scans: Mapping[str, Findings], config: MergeConfig) -> None:
  """Scans of the method that another setting has made; not those of its posts."""
  own = {repr(params) for _, params in config.post if post_of(params).scans(params)}
  for key, found in scans.items():
    if key not in work.scans and key.partition(' of ')[2] not in own:
      work.scans[key] = found
