"""What a plan warns of where experts are adapters of small rank."""

from collections.abc import Mapping

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.plan.rules import Rule
from resmerge_jax.plan.stacks import Choose
from resmerge_jax.types import TensorRef


def adapter_warnings(
  group: ExpertGroup,
  rules: Mapping[str, Rule],
  out: Mapping[str, TensorRef],
  choose: Choose,
) -> list[str]:
  """Lines on updates of too small a rank for their method; `out`: the output tensors."""
  if not group.loras:
    return []
  return [
    *_vanishing(group, rules, out, choose),
    *_arbitrary(group, rules, out, choose),
  ]


def _vanishing(
  group: ExpertGroup,
  rules: Mapping[str, Rule],
  out: Mapping[str, TensorRef],
  choose: Choose,
) -> list[str]:
  """Adapters whose rank is so small that a method keeps nothing of them."""
  warnings = []
  for i, expert in enumerate(group.experts, 1):
    lost = []
    for name in group.names:
      lora, rank = group.lora(i, name), choose(rules[name], out[name]).loses_rank
      if lora and lora.rank <= rank and not group.stores(i, name):
        lost.append((name, lora.rank, rank))
    if lost:
      name, has, rank = lost[0]
      warnings.append(
        f'expert {expert.id!r}: {len(lost)} of its {len(group.loras[i])} updates are of '
        f'rank {has}, and the method takes the leading {rank} off each update as its '
        f'head (head_rank): nothing is left of them, such as {name}; merge adapters of '
        'larger rank, or by another method (task_arithmetic)'
      )
  return warnings


def _arbitrary(
  group: ExpertGroup,
  rules: Mapping[str, Rule],
  out: Mapping[str, TensorRef],
  choose: Choose,
) -> list[str]:
  """Matrices whose method wants more directions than their updates have."""
  found: dict[str, list[str]] = {}
  n = len(group.experts)
  for name in group.names:
    chosen, short = choose(rules[name], out[name]), min(out[name].rows, out[name].cols)
    if not chosen.spans or not any(group.lora(i, name) for i in range(1, n + 1)):
      continue
    ranks = [_rank(group, i, name, short) for i in range(1, n + 1)]
    if chosen.spans == 'sum' and sum(ranks) < short:
      what = f'{sum(ranks)} directions of {short} in all'
    elif chosen.spans == 'each' and min(ranks) < short // n:
      what = f'rank {min(ranks)} where {short // n} triplets of each are taken'
    else:
      continue
    found.setdefault(type(chosen.method).__name__, []).append(f'{name} ({what})')
  return [
    f'{method} is ill-posed on {len(places)} matrices that LoRA adapters change, such as '
    f'{places[0]}: directions that no update has get no weight, so that the update is '
    'shorter than the method means it to be; another method (resmerge, task_arithmetic) '
    'has no such rule'
    for method, places in found.items()
  ]


def _rank(group: ExpertGroup, i: int, name: str, short: int) -> int:
  """The largest rank that the update of source i may have."""
  if group.stores(i, name):
    return short if group.has(i, name) else 0
  lora = group.lora(i, name)
  return min(lora.rank, short) if lora else 0
