"""The order of the steps: what a first run computes while later programs compile."""

import dataclasses
import itertools

from resmerge_jax.cli.shape_group import shape_group
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.plan.plan import MergePlan, make_plan
from resmerge_jax.plan.rules import RELEASE_RULES
from resmerge_jax.plan.stacks import Chosen


def plan(whole: bool) -> MergePlan:
  """Of a model with an embedding, biases and norms; the method takes whole matrices?"""
  return make_plan(
    shape_group('qwen2.5-0.5b', 3),
    RELEASE_RULES,
    choose=lambda rule, _: Chosen(
      ResMerge() if rule.action == 'method' else TaskArithmetic(),
      whole=whole and rule.action == 'method',
    ),
    output_dtype='bfloat16',
  )


def order(found: MergePlan) -> list[tuple[int, int]]:
  """Shapes of the stacks, as their steps come; each stack's come together."""
  stacks = [stack for stack, _ in itertools.groupby(step.stack for step in found.steps)]
  assert len(set(map(id, stacks))) == len(stacks) == len(found.stacks)
  return [(stack.n_rows, stack.n_cols) for stack in stacks]


def test_rows_by_themselves_then_the_largest_stacks_then_vectors():
  head, tail = (151936, 896), [(1, 896), (1, 128)]
  ffn, attention = [(4864, 896), (896, 4864)], [(896, 896), (128, 896)]
  assert order(plan(whole=True)) == [head, *ffn, *attention, *tail]
  assert order(plan(whole=False)) == [ffn[0], head, ffn[1], *attention, *tail]


def test_the_order_is_part_of_the_fingerprint():
  """A run that stopped is not continued in another order: steps have numbers."""
  found = plan(whole=True)
  turned = dataclasses.replace(found, steps=found.steps[::-1])
  assert turned.fingerprint != found.fingerprint
