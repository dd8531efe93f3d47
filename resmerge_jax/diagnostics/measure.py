"""One reading pass over base and experts that measures, with the pipeline of a merge."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resmerge_jax.checkpoint.file_states import check_unchanged
from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.config import MergeConfig, choose
from resmerge_jax.diagnostics.records import added, measured_record, rank_of
from resmerge_jax.diagnostics.statistics import Statistics
from resmerge_jax.errors import InputError
from resmerge_jax.linalg.quadrature import EXACT_SIDE
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.pipeline.checks import check_merged
from resmerge_jax.pipeline.chips import device_facts
from resmerge_jax.pipeline.exact_heads import replace_flagged
from resmerge_jax.pipeline.fetched import Fetched, fetch
from resmerge_jax.pipeline.loop import WAITS, Done, run_steps
from resmerge_jax.pipeline.prepare import open_group
from resmerge_jax.pipeline.stream import whole_layer
from resmerge_jax.pipeline.work import Work, computes, silent
from resmerge_jax.plan.plan import MergePlan, make_plan
from resmerge_jax.plan.rules import Rule, family_of, layer_of
from resmerge_jax.plan.stacks import Chosen
from resmerge_jax.processes import gathered
from resmerge_jax.sharding import merge_devices
from resmerge_jax.types import TensorRef, find

Blocks = dict[tuple[str, int], dict[str, Any]]  # of a tensor, from a row on


@dataclasses.dataclass(frozen=True)
class Settings:
  """What to measure and how; fields as in MergeConfig where they have its names.

  `head_rank`: k of the heads; `threshold`: RAM's.
  """

  head_rank: int = 1
  effective_rank: bool = False
  threshold: float = 1e-5
  output_dtype: str = 'bfloat16'
  memory_budget: int | str | None = None
  mesh: Any = None
  seed: int = 0
  vocab: str = 'error'
  extra: str = 'error'
  missing: str = 'error'


@dataclasses.dataclass(frozen=True)
class Opened:
  """A group whose headers were compared: nothing of its weights is read yet."""

  config: MergeConfig
  settings: Settings
  group: ExpertGroup
  states: tuple[Mapping[str, Any], ...]
  plan: MergePlan
  n_merged: int

  @property
  def expert_ids(self) -> tuple[str, ...]:
    """Without the merged model."""
    ids = tuple(expert.id for expert in self.group.experts)
    return ids[: len(ids) - self.n_merged]


def open_sources(
  base: str | pathlib.Path,
  experts: Sequence[str | pathlib.Path],
  settings: Settings,
  expert_ids: Sequence[str] | None = None,
  merged: str | pathlib.Path | None = None,
) -> Opened:
  """Opens and compares the folders, and plans the pass.

  Args:
    merged: a model merged of these, to measure its distances.

  Raises:
    InputError: folders that cannot be used or do not belong together, settings out of
      range, a budget that is too small.
  """
  fields = {
    key: value
    for key, value in dataclasses.asdict(settings).items()
    if key not in ('head_rank', 'effective_rank', 'threshold')
  }
  if not settings.threshold >= 0:
    raise InputError(f'threshold: got {settings.threshold}, expected 0 or more')
  ids = tuple(expert_ids) if expert_ids else None
  if merged is not None and ids:
    ids = (*ids, 'the merged model')
  config = MergeConfig(
    base=base,
    experts=(*experts, *([merged] if merged is not None else [])),
    expert_ids=ids,
    method=ResMerge(head_rank=settings.head_rank),
    **fields,
  )
  group, states = open_group(config)
  assert config.rules is not None
  assert not isinstance(config.mesh, str)
  assert config.memory_budget is None or isinstance(config.memory_budget, int)
  plan = make_plan(
    group,
    config.rules,
    choose=_choose(config, settings),
    output_dtype=config.output_dtype,
    budget=config.memory_budget,
    devices=device_facts(merge_devices(config.mesh), config.mesh),
  )
  return Opened(config, settings, group, states, plan, int(merged is not None))


def _choose(config: MergeConfig, settings: Settings) -> Callable[..., Chosen]:
  """As a merge by ResMerge, but for what the numbers keep beside the weights."""
  chosen = choose(config.method, TaskArithmetic(), (), len(config.experts))

  def measured(rule: Rule, tensor: TensorRef) -> Chosen:
    of_merge = chosen(rule, tensor)
    scratch, gram = of_merge.scratch, 0
    if settings.effective_rank and of_merge.redone:
      short = min(tensor.rows, tensor.cols)
      scratch += 4  # a task vector of length 1
      if short <= EXACT_SIDE:
        gram = 12 * short**2  # Gram matrix, eigenvectors, workspace of eigh
    return of_merge._replace(
      on_factors=False,
      loses_rank=0,
      scratch=scratch,
      matrix_scratch=of_merge.matrix_scratch + gram,
    )

  return measured


def measure(
  opened: Opened, progress: Callable[[str, int], None] = silent
) -> list[dict[str, Any]]:
  """Reads everything once; the records, in the base's order of tensors.

  With several processes all of them call this, and all get the records.

  Raises:
    InputError: NaN or Inf in the weights, files that change or cannot be read.
  """
  group, config, settings = opened.group, opened.config, opened.settings
  assert not isinstance(config.mesh, str)
  blocks: Blocks = {}
  with contextlib.ExitStack() as stack:
    readers = [
      stack.enter_context(reader_of(source, states))
      for source, states in zip(group.sources, opened.states, strict=True)
    ]
    work = Work(
      plan=opened.plan,
      group=group,
      readers=readers,
      sink=_Nowhere(),
      weights=(1.0,) * len(group.experts),
      seed=config.seed,
      devices=merge_devices(config.mesh),
      mesh_shape=config.mesh,
      progress=progress,
      measure=Statistics(
        settings.threshold,
        EXACT_SIDE if settings.effective_rank else None,
        opened.n_merged,
      ),
    )
    steps = [step for step in work.steps if computes(step)]
    run_steps(
      work, steps, functools.partial(_finish, work, blocks), dict.fromkeys(WAITS, 0.0)
    )
    check_unchanged(zip(group.sources, opened.states, strict=True))
  if jax.process_count() > 1:
    blocks = {key: one for part in gathered(blocks) for key, one in part.items()}
  return _records(opened, blocks)


def bytes_read(opened: Opened) -> int:
  """Of the tensors that are measured."""
  return sum(step.nbytes for step in opened.plan.steps if computes(step))


def _finish(work: Work, blocks: Blocks, done: Done) -> None:
  """Waits for a step, mends what the solver flagged, checks, keeps the numbers."""
  step, spec = done.step, done.turn.own
  assert spec is not None
  read_layer = functools.partial(whole_layer, work, done.pool, step, done.inputs)
  fetched, exact_LxN = replace_flagged(
    spec,
    step,
    fetch(step, done.result),
    read_layer,
    done.context,
    jax.local_devices()[0],
    done.exact,
  )
  check_merged(work.group, step, fetched, done.inputs)
  for at, layer in enumerate(fetched.layers):
    if fetched.owned[at]:
      size = (step.row_stop - step.row_start) * step.stack.n_cols
      blocks[step.names[layer], step.row_start] = {
        **_numbers(fetched, at, exact_LxN),
        'size': size,
      }
  done.give_back()
  work.progress(step.label, step.nbytes)


def _numbers(fetched: Fetched, at: int, exact_LxN: np.ndarray) -> dict[str, Any]:
  """Of one layer, apart from the arrays of the device; sums wide enough to be added."""
  found: dict[str, Any] = {
    key: value[at].astype(np.float64 if value.dtype.kind == 'f' else np.int64)
    for key, value in fetched.found.stats.items()
  }
  found['changed'] = fetched.found.sums.changed_LxN[at].astype(np.int64)
  if 'sample_NxBxB' in found:
    found['sample_rank_N'] = [rank_of(x) for x in found.pop('sample_NxBxB')]
  if fetched.found.head is not None:
    n = len(found['norm_R'])
    head = fetched.found.head
    found |= {
      'sigma_NxK': np.array(head.sigma_K[at][:n]),
      'sigma_next_N': np.array(head.sigma_next[at][:n]),
      'error_N': np.array(head.error[at][:n]),
      'certified_N': np.array(head.certified[at][:n]),
      'float64_N': exact_LxN[at][:n],
    }
  return found


def _records(opened: Opened, blocks: Blocks) -> list[dict[str, Any]]:
  group, rules = opened.group, opened.plan.rules
  of_tensor: dict[str, list[dict[str, Any]]] = {}
  for (name, _), numbers in sorted(blocks.items(), key=lambda item: item[0]):
    of_tensor.setdefault(name, []).append(numbers)
  records = []
  for name in group.base.tensors:
    for part in rules[name].matrices(group.base.tensors[name]):
      ref, _ = find(group.base.tensors, part)
      record = {
        'name': part,
        'family': family_of(part),
        'rule': rules[ref.name].action,
        'shape': list(group.out_shape(part)),
        'layer': layer_of(part),
      }
      if part in of_tensor:
        n = len(opened.expert_ids)
        record |= measured_record(added(of_tensor[part]), n)
      records.append(record)
  return records


class _Nowhere:
  """The sink of a pass that writes nothing."""

  def write(self, name: str, offset_bytes: int, data: np.ndarray) -> None:
    raise AssertionError(f'{name}: {data.nbytes} bytes at {offset_bytes}')

  def finish(self, step: Any, numbers: Any) -> None:
    """Nothing to make durable."""
