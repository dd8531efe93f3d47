"""The stacks of a group under its rules, and their steps."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.errors import InputError
from resmerge_jax.plan.accelerators import Accelerators, Cpu
from resmerge_jax.plan.rules import Rule, family_of
from resmerge_jax.plan.stacks import Choose, Stack, Step
from resmerge_jax.plan.step_sizes import (
  DEFAULT_BUDGET,
  PROCESS_BYTES,
  peak,
  program_bytes,
  sized,
)
from resmerge_jax.sizes import format_size
from resmerge_jax.types import TensorRef


def build_stacks(
  group: ExpertGroup,
  rules: Mapping[str, Rule],
  out: Mapping[str, TensorRef],
  *,
  choose: Choose,
  budget: int | None,
  devices: Accelerators | Cpu,
  settings: int = 1,
) -> tuple[Stack, ...]:
  """The stacks of a merge, in the order of the base's files.

  Args:
    out: the output tensors, by name.
    choose: how the tensors of a rule are merged.
    budget: bytes of anonymous memory the process may use; None: DEFAULT_BUDGET, or
      what the largest matrix needs.
    devices: what computes.
    settings: of a sweep, for each of which a step has an output.

  Raises:
    InputError: the budget is below what the largest matrix needs, with that number.
  """
  members: dict[Stack, list[str]] = {}
  for name in group.names:
    rule, sources = rules[name], range(len(group.sources))
    ref = out[name].part(0) if rule.splits(out[name]) else out[name]
    read = sources[:1] if rule.action == 'base' else sources
    loras = [group.lora(i, name) for i in read]
    key = Stack(
      action=rule.action,
      chosen=choose(rule, ref),
      family=family_of(name) if rule.action == 'method' else None,
      n_rows=ref.rows,
      n_cols=ref.cols,
      dtypes=tuple(group.ref(i, name).dtype for i in sources),
      out_dtype=ref.dtype,
      present=tuple(group.has(i, name) for i in sources),
      names=(),
      sources=tuple(i for i in read if group.stores(i, name)),
      rank=int(any(loras)),  # all ranks alike, so that they share a program
      swept=settings > 1,
      reads_ahead=all(group.sources[i].reads_ahead for i in read),
    )
    members.setdefault(key, []).extend(rule.matrices(out[name]))
  stacks = [
    dataclasses.replace(key, names=tuple(names), rank=_rank(group, key, names))
    for key, names in members.items()
  ]
  programs = program_bytes(stacks, settings)
  floor = programs + max(
    (peak(s, 1, s.n_rows if s.chosen.whole else 1, devices) for s in stacks), default=0
  )
  if budget is None and isinstance(devices, Cpu):
    budget = max(DEFAULT_BUDGET, floor)
  if budget is not None and floor > budget:
    raise InputError(
      f'memory_budget: got {format_size(budget)}, the largest matrix needs '
      f'{format_size(floor)} ({floor} bytes)',
      why='this method takes all rows of a matrix at once',
      fix=f'pass --memory_budget={floor} or more',
    )
  room = math.inf if budget is None else budget - PROCESS_BYTES - programs
  return tuple(sized(stack, room, devices) for stack in stacks)


def _rank(group: ExpertGroup, stack: Stack, names: Sequence[str]) -> int:
  """The largest rank of their factors."""
  if not stack.rank:
    return 0
  sources = range(1, len(stack.dtypes))
  loras = (group.lora(i, name) for i in sources for name in names)
  return max(lora.rank for lora in loras if lora)


def build_steps(stacks: Sequence[Stack], group: ExpertGroup) -> tuple[Step, ...]:
  """All steps, stack by stack. Tensors without elements need none.

  First matrices whose program compiles soonest, rows by themselves, then the largest
  stacks, then vectors: steps run while the programs of later ones compile.
  """

  def turn(stack: Stack) -> tuple[bool, int]:
    later = stack.chosen.whole or stack.n_rows == 1
    return later, -len(stack.names) * stack.n_rows * stack.n_cols

  return tuple(
    step
    for stack in sorted(stacks, key=turn)
    if stack.n_rows * stack.n_cols
    for step in _steps(stack, group)
  )


def _steps(stack: Stack, group: ExpertGroup) -> Iterator[Step]:
  if stack.rows == stack.n_rows and not any(
    name in group.uneven for name in stack.names
  ):
    for start in range(0, len(stack.names), stack.layers):
      names = stack.names[start : start + stack.layers]
      yield Step(stack, names, 0, stack.n_rows, stack.present)
    return
  for name in stack.names:
    has = [group.ref(i, name).rows for i in range(len(stack.dtypes))]
    cuts = {0, stack.n_rows} | {n for n in has if n < stack.n_rows}
    cuts |= set(range(0, stack.n_rows, stack.rows))
    edges = sorted(cuts)
    for start, stop in itertools.pairwise(edges):
      here = (p and n > start for p, n in zip(stack.present, has, strict=True))
      yield Step(stack, (name,), start, stop, tuple(here))
