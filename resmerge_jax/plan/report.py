"""The plan as text for people."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.summary import fold_names, table
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.plan.rules import (
  depth_of,
  family_of,
  layer_count,
  layer_counts,
  weights_at,
)
from resmerge_jax.sizes import format_size


def describe_weights(
  plan: MergePlan, group: ExpertGroup, weights: Sequence[Any]
) -> list[str]:
  """Lines: the weights of the experts as they come out for each tensor."""
  counts = layer_counts(group.names)
  named: dict[tuple[float, ...], list[str]] = {}
  for name, rule in plan.rules.items():
    depth = depth_of(name, layer_count(counts, name))
    at = weights_at(rule.weights or weights, depth)
    named.setdefault(tuple(round(w, 6) for w in at), []).append(name)
  rows = [
    (', '.join(f'{w:g}' for w in at), ', '.join(p for p, _ in fold_names(names)))
    for at, names in named.items()
  ]
  return ['', 'weights of the experts', *table(rows)]


def describe_plan(
  plan: MergePlan, group: ExpertGroup, output_dtype: str, formats: str = 'safetensors'
) -> list[str]:
  """Lines: inputs, rules with counts, families, stacks, sizes, warnings."""
  n = len(plan.rules)
  lines = [
    f'base     {group.base.id}: {n} tensors, {format_size(group.base.nbytes)}',
    *(
      f'expert   {e.id}: {format_size(e.nbytes)}'
      + (', a LoRA adapter' if e.adapter else '')
      for e in group.experts
    ),
    '',
    'rules (first match wins)',
  ]
  lines += table(
    [
      (str(count), rule.action, rule.why, '' if not rule.match else f'/{rule.match}/')
      for rule, count in plan.rule_counts.items()
    ]
  )
  families = Counter((family_of(name), plan.rules[name].action) for name in plan.rules)
  lines += ['', 'families']
  lines += table([(str(c), family, act) for (family, act), c in families.items()])
  how: Counter[str] = Counter()
  for stack in plan.stacks:
    how[str(stack.chosen)] += len(stack.names)
  lines += ['', 'merged by (parameters that are not the defaults)']
  lines += table([(str(n), text) for text, n in how.items()])
  lines += ['', 'stacks (layers x rows of one step)']
  lines += table(
    [
      (
        f'{len(s.names)} x [{s.n_rows}, {s.n_cols}]',
        s.action,
        s.family or '',
        '/'.join(dict.fromkeys(s.dtypes))
        + (f' + factors of rank {s.rank}' if s.rank else '')
        + f' -> {s.out_dtype}',
        f'step {s.layers} x {s.rows}',
        ', '.join(pattern for pattern, _ in fold_names(s.names)),
      )
      for s in plan.stacks
    ]
  )
  if plan.given.file:
    n = len(plan.given.arrays)
    lines += ['', f'masks of {n} matrices from {plan.given.file}']
  lines += [
    '',
    f'{format_size(plan.bytes_read)} to read in {len(plan.steps)} steps, '
    f'{format_size(plan.bytes_written)} to write in {len(plan.layout.files)} files, '
    f'{formats}, floating tensors as {output_dtype}',
    f'predicted peak memory {format_size(plan.peak_memory)}, '
    f'budget {format_size(plan.budget)}',
    f'fingerprint {plan.fingerprint[:16]}',
  ]
  return lines + [f'warning: {warning}' for warning in plan.warnings]
