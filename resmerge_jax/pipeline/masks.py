"""Masks and coefficients from a file, put into a plan once they are known to fit it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.mask_file import LAMBDA, MASK, MaskFile, read_mask_file
from resmerge_jax.errors import InputError
from resmerge_jax.methods.rank_mask import RankMask
from resmerge_jax.plan.plan import Given, MergePlan
from resmerge_jax.types import find


def with_masks(plan: MergePlan, group: ExpertGroup) -> MergePlan:
  """The plan with what the file of its `rank_mask` says of single tensors.

  A plan without such a method is returned as it is.

  Raises:
    InputError: masks that are not those of this group and this plan; all of them.
  """
  found = (stack.chosen.method for stack in plan.stacks)
  chosen = {params for params in found if isinstance(params, RankMask)}
  if not any(params.masks for params in chosen):
    return plan
  if len(chosen) > 1:
    raise InputError(
      'rank_mask: masks, and rules with other parameters of it',
      map(str, chosen),
      fix='give the rules the parameters of the merge, or another method',
    )
  params, n = chosen.pop(), len(group.experts)
  file = read_mask_file(params.masks)
  _check_experts(file, group)
  shapes, scaled = mask_shapes(plan, n), coefficient_names(plan)
  problems = [
    *_differences(MASK, shapes, file.masks),
    *_differences(LAMBDA, dict.fromkeys(scaled, (n,)), file.lambdas),
    *(f'{name}: its rule has weights' for name in scaled if plan.rules[name].weights),
  ]
  if problems:
    raise InputError(
      f'masks {file.path}: they are not those of this merge',
      problems,
      why='every matrix of the method needs its mask; coefficients are given for all '
      'tensors that are merged or for none',
      fix='learn or write them for this base, these experts and these rules',
    )
  weights = {
    name: tuple(file.lambdas[name].tolist()) if file.lambdas else (params.scale,) * n
    for name in scaled
  }
  arrays = {name: {'mask_NxS': file.masks[name]} for name in shapes}
  given = Given(str(file.path), file.sha256, arrays, weights)
  return dataclasses.replace(plan, given=given)


def mask_shapes(plan: MergePlan, n_experts: int) -> dict[str, tuple[int, ...]]:
  """[N, S] of each matrix, or part of one, that gets a mask."""
  return {
    name: (n_experts, min(stack.n_rows, stack.n_cols))
    for stack in plan.stacks
    if isinstance(stack.chosen.method, RankMask)
    for name in stack.names
  }


def coefficient_names(plan: MergePlan) -> list[str]:
  """Tensors that have coefficients: matrices with masks, and what goes by task
  arithmetic beside them.
  """
  names = (
    find(plan.layout.where, name)[0].name
    for stack in plan.stacks
    if stack.action == 'task_arithmetic' or isinstance(stack.chosen.method, RankMask)
    for name in stack.names
  )
  return list(dict.fromkeys(names))


def _check_experts(file: MaskFile, group: ExpertGroup) -> None:
  ids = tuple(expert.id for expert in group.experts)
  if file.experts != ids:
    raise InputError(
      f'masks {file.path}: made for the experts {", ".join(file.experts)}',
      [f'this merge has {", ".join(ids)}'],
      why='the rows of a mask belong to experts, in one order',
      fix='give the same experts in that order; --expert_ids names them',
    )


def _differences(
  kind: str, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray]
) -> list[str]:
  if kind == LAMBDA and not found:
    return []
  wrong = [f'{name}{kind}: missing' for name in shapes if name not in found]
  for name, array in found.items():
    if name not in shapes:
      wrong.append(f'{name}{kind}: nothing that is merged so')
    elif array.shape != shapes[name]:
      got, expected = list(array.shape), list(shapes[name])
      wrong.append(f'{name}{kind}: {got}, expected {expected}')
  return wrong
