"""Whole weight files per process, where several cannot write to one file at once."""

import dataclasses
from collections.abc import Mapping

from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.plan.stacks import Step


def by_file(plan: MergePlan) -> MergePlan:
  """The same plan in steps of one group of weight files each, one after another.

  Where a group has fewer layers than a step of their stack, the step is filled up with
  zeros as any last step of a stack is: the compiled programs stay the same.
  """
  alike: dict[str, dict[tuple, list[str]]] = {g: {} for g in plan.layout.groups}
  for step in plan.steps:
    for name in step.names:
      # By identity: a stack with all its names is long to hash.
      key = (id(step.stack), step.row_start, step.row_stop, step.present)
      alike[plan.layout.group(name)].setdefault(key, []).append(name)
  stacks = {id(stack): stack for stack in plan.stacks}
  steps = [
    Step(stacks[stack], tuple(names[at : at + stacks[stack].layers]), *rest)
    for groups in alike.values()
    for (stack, *rest), names in groups.items()
    for at in range(0, len(names), stacks[stack].layers)
  ]
  return dataclasses.replace(plan, steps=tuple(steps))


def owners(plan: MergePlan, n_processes: int) -> Mapping[str, int]:
  """The process that writes each group of files: the largest first, to who has least so far."""
  found, loads = {}, [0] * n_processes
  for group, nbytes in sorted(plan.layout.groups.items(), key=lambda g: (-g[1], g[0])):
    process = loads.index(min(loads))
    found[group] = process
    loads[process] += nbytes
  return found
