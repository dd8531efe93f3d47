"""A diagnosis as CSV and as text for a terminal."""

import csv
import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from resmerge_jax.diagnostics.diagnosis import Diagnosis, Finding, GroupDiagnosis

WIDTH = 88
LISTED = 3  # tensors of a finding on the terminal
_PER_GROUP = (
  # field of the totals, heading; means over matrices where they are spread
  ('s_R', 's_R'),
  ('c_R', 'c_R'),
  ('S_H', 'S_H'),
  ('retention_head', 'Ret_H'),
  ('retention_residual', 'Ret_R'),
)
_PER_EXPERT = (
  ('delta_norm', '||D||', '{:.4g}'),
  ('relative_norm', 'relative', '{:.2%}'),
  ('zero_fraction', 'zeros', '{:.1%}'),
  ('below_step', '< step', '{:.1%}'),
  ('energy', 'sigma1^2', '{:.1%}'),
  ('stable_rank', 'st. rank', '{:.1f}'),
  ('stable_rank_residual', 'st. rank R', '{:.1f}'),
  ('effective_rank', 'eff. rank', '{:.1f}'),
  ('effective_rank_residual', 'eff. rank R', '{:.1f}'),
  ('distance', 'to merged', '{:.4g}'),
)


def as_csv(diagnosis: Diagnosis) -> str:
  """One row per tensor and group; lists spread into columns `field[expert]`.

  Pairs are `field[a|b]`, lists of lists `field[expert][1]` with the rank from 1, and
  shapes text such as 136x160. What is absent, or does not exist, is an empty cell.
  """
  rows = [
    {'group': group.label, **_spread(group, record)}
    for group in diagnosis.groups
    for record in group.records
  ]
  columns = dict.fromkeys(key for row in rows for key in row)
  out = io.StringIO()
  writer = csv.DictWriter(out, list(columns), restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()


def _spread(group: GroupDiagnosis, record: Mapping[str, Any]) -> dict[str, Any]:
  pairs = ['|'.join(pair) for pair in itertools.combinations(group.expert_ids, 2)]
  row: dict[str, Any] = {}
  for field, value in record.items():
    if field == 'shape':
      row[field] = 'x'.join(map(str, value))
    elif isinstance(value, list):
      names = pairs if field.endswith('_pairs') else group.expert_ids
      for name, of_one in zip(names, value, strict=True):
        row |= _cells(f'{field}[{name}]', of_one)
    else:
      row[field] = value
  return row


def _cells(column: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, list):
    return {column: value}
  return {f'{column}[{k}]': x for k, x in enumerate(value, 1)}


def as_text(diagnosis: Diagnosis) -> str:
  """A table and the findings of each group."""
  return '\n\n'.join('\n'.join(_group(group)) for group in diagnosis.groups)


def _group(group: GroupDiagnosis) -> list[str]:
  totals = group.totals
  lines = [
    f'{group.label}: {len(group.expert_ids)} '
    f'{"expert" if len(group.expert_ids) == 1 else "experts"} of {group.base}, '
    f'{totals["tensors"]} tensors, {totals["matrices"]} matrices with heads',
    '',
    *_table(_experts(group)),
  ]
  numbers = [
    f'{heading} {totals[field]["mean"]:.3f} +- {totals[field]["std"]:.3f}'
    for field, heading in _PER_GROUP
    if field in totals and totals[field]['mean'] is not None
  ]
  if numbers:
    lines += ['', 'mean over matrices: ' + ', '.join(numbers)]
  if 'sign_conflict' in totals and totals['sign_conflict'] is not None:
    lines.append(
      f'signs differ in {totals["sign_conflict"]:.1%} of the entries that two experts '
      'or more change'
    )
  lines += _pairs(group)
  if group.merge is not None:
    lines += _merge(group)
  for note in group.notes:
    lines += _wrapped('note: ', note)
  lines.append('')
  if not group.findings:
    return [*lines, 'check-up: nothing found']
  lines.append(f'check-up: {len(group.findings)} found')
  for finding in group.findings:
    lines += _finding(finding)
  return lines


def _experts(group: GroupDiagnosis) -> list[list[str]]:
  shown = [
    (heading, form, _of_experts(group.totals[field]))
    for field, heading, form in _PER_EXPERT
    if field in group.totals
  ]
  rows = [['expert', *(heading for heading, _, _ in shown)]]
  for i, who in enumerate(group.expert_ids):
    rows.append(
      [who, *('-' if x[i] is None else form.format(x[i]) for _, form, x in shown)]
    )
  return rows


def _of_experts(total: Any) -> list[Any]:
  """Of a list, or the means over matrices; of cumulative energies the first."""
  values = total['mean'] if isinstance(total, Mapping) else total
  return [x[0] if isinstance(x, list) else x for x in values]


def _pairs(group: GroupDiagnosis) -> list[str]:
  fields = {
    'cos_delta_pairs': 'update',
    'cos_head_pairs': 'heads',
    'cos_residual_pairs': 'residuals',
  }
  shown = {
    heading: group.totals[field]
    for field, heading in fields.items()
    if group.totals.get(field)
  }
  names = list(itertools.combinations(group.expert_ids, 2))
  if not shown or not names:
    return []
  rows = [['cosines', *shown]]
  for at, (a, b) in enumerate(names):
    row = [f'{a} | {b}']
    for total in shown.values():
      if isinstance(total, Mapping):
        mean, std = total['mean'][at], total['std'][at]
        row.append('-' if mean is None else f'{mean:.3f} +- {std:.3f}')
      else:
        row.append('-' if total[at] is None else f'{total[at]:.3f}')
    rows.append(row)
  return ['', *_table(rows)]


def _merge(group: GroupDiagnosis) -> list[str]:
  assert group.merge is not None
  totals = group.totals
  parts = [f'merged by {group.merge["method"]["name"]}']
  if 'update_norm' in totals:
    parts.append(f'||U|| {totals["update_norm"]:.4g}')
  if 'alpha_R' in totals:
    parts.append(f'alpha_R {totals["alpha_R"]["mean"]:.3f}')
  if 'branch' in totals:
    parts.append(', '.join(f'{n} {name}' for name, n in totals['branch'].items()))
  if 'rounding_loss' in totals:
    parts.append(
      f'rounding to {totals["output_dtype"]} changed {totals["rounding_loss"]:.1%}'
    )
  return ['', *_wrapped('', '; '.join(parts))]


def _finding(finding: Finding) -> list[str]:
  lines = _wrapped(f'{finding.level}: ', finding.what)
  lines += _wrapped('  ', finding.consequence) + _wrapped('  ', finding.advice)
  if finding.tensors:
    rest = len(finding.tensors) - LISTED
    more = f' and {rest} more' if rest > 0 else ''
    lines += _wrapped('  ', 'In ' + ', '.join(finding.tensors[:LISTED]) + more + '.')
  return lines


def _wrapped(lead: str, text: str) -> list[str]:
  return textwrap.wrap(
    text,
    WIDTH,
    initial_indent=lead,
    subsequent_indent='  ',
    break_long_words=False,
    break_on_hyphens=False,
  )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
  """The first column to the left, numbers to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.rjust(width) if at else cell.ljust(width)
      for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
