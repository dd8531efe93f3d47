"""Merges every step of a plan: scans first, then one pass that reads, merges, writes."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import jax
import numpy as np

from resmerge_jax.checkpoint.reader import block_bytes
from resmerge_jax.host_float import to_float32
from resmerge_jax.methods.table import method_of
from resmerge_jax.pipeline.checks import check_copied, check_merged
from resmerge_jax.pipeline.exact_heads import replace_flagged
from resmerge_jax.pipeline.fetched import Fetched, Piece, fetch
from resmerge_jax.pipeline.kernel_spec import KernelSpec
from resmerge_jax.pipeline.loop import WAITS, Done, run_steps
from resmerge_jax.pipeline.records import Records
from resmerge_jax.pipeline.scan import run_scans
from resmerge_jax.pipeline.staging import Shard, Staged, Staging, fill, staged
from resmerge_jax.pipeline.work import Work
from resmerge_jax.plan.stacks import Step
from resmerge_jax.types import DTYPES


def stream(work: Work) -> tuple[Records, dict[str, float]]:
  """Merges every step of the plan not finished. Returns records, seconds per phase.

  Raises:
    InputError: NaN or Inf in an input or in the output, or the disk fails.
  """
  records = restored(work)
  seconds = dict.fromkeys(WAITS, 0.0)
  if work.recipe is None:
    run_scans(work, seconds)

  def finish(done: Done) -> None:
    finish_turn(done, [Output(work, records, done.step)])
    work.progress(done.step.label, done.step.nbytes)

  run_steps(work, work.steps, finish, seconds)
  return records, seconds


class Output(NamedTuple):
  """Where the result of a turn goes; `step` is that of the plan of `work`."""

  work: Work
  records: Records
  step: Step


def restored(work: Work) -> Records:
  """The records of the steps that an earlier run wrote."""
  records = Records(work.group, work.plan.rules)
  for i, numbers in work.finished.items():
    if numbers is not None:
      records.restore(work.plan.steps[i], numbers)
  return records


def finish_turn(done: Done, outputs: Sequence[Output]) -> None:
  """Waits for a program, mends what the solver flagged, checks, writes, records.

  The last turn of a step has an output.
  """
  if not outputs:
    return
  if done.turn.own is None:
    _finish_copied(done, outputs)
  else:
    _finish_merged(done, done.turn.own, outputs)


def _finish_copied(done: Done, outputs: Sequence[Output]) -> None:
  step, inputs = done.step, done.inputs
  out_LxRxC = _copied(step, inputs.shards[0].base)[: len(step.names)]
  if step.stack.is_float:
    check_copied(outputs[0].work.group, step, inputs, out_LxRxC)
  n_rows = step.row_stop - step.row_start
  pieces = [Piece(i, range(n_rows), x[:n_rows]) for i, x in enumerate(out_LxRxC)]
  for work, _, own_step in outputs:
    _write(work, own_step, pieces)
  done.give_back()
  for work, _, own_step in outputs:
    work.sink.finish(own_step, None)


def _finish_merged(done: Done, spec: KernelSpec, outputs: Sequence[Output]) -> None:
  step, inputs, any_work = done.step, done.inputs, outputs[0].work
  read_layer = functools.partial(whole_layer, any_work, done.pool, step, inputs)
  fetched, exact_LxN = replace_flagged(
    spec,
    step,
    fetch(step, done.result),
    read_layer,
    done.context,
    jax.local_devices()[0],
    done.exact,
  )
  check_merged(any_work.group, step, fetched, inputs)
  branches = method_of(spec.params).branches
  numbers = [
    records.add(own_step, fetched, branches, exact_LxN, inputs)
    for _, records, own_step in outputs
  ]
  if done.last:
    done.give_back()  # the next read may begin while this is written
  for (work, records, own_step), of_output in zip(outputs, numbers, strict=True):
    if work.recipe is not None and step.row_stop - step.row_start == step.stack.n_rows:
      work.recipe.check_records(map(records.record, step.names))
    _write(work, own_step, fetched.pieces)
    if fetched.found.recipe is not None:
      _write_recipe(work, own_step, fetched)
    work.sink.finish(own_step, of_output)


def whole_layer(
  work: Work, pool: Executor, step: Step, inputs: Staged, layer: int
) -> Shard:
  """All rows of one layer of a step: as staged, or read again if they are not here."""
  rows = step.stack.rows
  for shard in inputs.shards:
    if layer in shard.layers and len(shard.rows) >= rows:
      at = slice(layer - shard.layers.start, layer - shard.layers.start + 1)
      return dataclasses.replace(
        shard,
        device=None,
        layers=range(1),
        rows=range(rows),
        base=shard.base[at, :rows],
        experts=shard.experts[at, :, :rows],
        left=shard.left[at, :, :rows],
        right=shard.right[at],
      )
  one = dataclasses.replace(step, names=step.names[layer : layer + 1])
  where = [(None, range(1), range(rows))]
  target = staged(Staging(1), where, step.stack, work.plan.devices)
  fill(one, target, work.group, work.readers, pool)
  return target.shards[0]


def _copied(step: Step, base_LxRxC: np.ndarray) -> np.ndarray:
  stored, wanted = step.stack.dtypes[0], step.stack.out_dtype
  if stored == wanted:
    return base_LxRxC
  with np.errstate(over='ignore'):  # the caller looks for Inf
    return to_float32(base_LxRxC).astype(DTYPES[wanted])


def _write_recipe(work: Work, step: Step, fetched: Fetched) -> None:
  """What this process reports of a step, where no step before it holds the same."""
  assert fetched.found.recipe is not None
  layout = work.plan.layout
  for at, layer in enumerate(fetched.layers):
    parts = layout.parts.get((step.names[layer], step.row_start), {})
    for part, name in parts.items() if fetched.owned[at] else ():
      array = fetched.found.recipe[part][at]
      if part == 'u_TxR':  # without the rows of padding
        array = array[:, : layout.where[name].shape[1]]
      work.sink.write(name, 0, np.ascontiguousarray(array))


def _write(work: Work, step: Step, pieces: Sequence[Piece]) -> None:
  for layer, rows, out_RxC in pieces:
    ref, first = work.plan.layout.place(step.names[layer])
    at = first + step.row_start
    if step.stack.out_dtype == 'F64':
      out_RxC = out_RxC.astype(np.float64)
    begin, _ = block_bytes(ref, at + rows.start, at + rows.stop)
    work.sink.write(ref.name, begin, out_RxC)
