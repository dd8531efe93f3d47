"""The numbers to read first, each with a sentence that says what it means."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report.geometry import chance
from resmerge_jax.report.markup import Markup, tag
from resmerge_jax.report.values import numbers

Groups = Sequence[GroupDiagnosis]


def experts(groups: Groups) -> Markup:
  """A row per expert. Columns without a number anywhere are left out."""
  every = [(group, i) for group in groups for i in range(len(group.expert_ids))]
  columns = [c for c in _COLUMNS if any(c.value(*one) is not None for one in every)]
  header = ['group', 'expert', *(column.name for column in columns)]
  rows = [
    [
      group.label,
      group.expert_ids[i],
      *(
        (_percent if column.percent else _plain)(column.value(group, i))
        for column in columns
      ),
    ]
    for group, i in every
  ]
  if len(groups) == 1:
    header, rows = header[1:], [row[1:] for row in rows]
  meanings = [
    part for c in columns for part in (tag('dt', c.name), tag('dd', c.meaning))
  ]
  kinds = ['text'] * (1 + (len(groups) > 1)) + [''] * len(columns)
  return tag('div', _table(header, kinds, rows), tag('dl', *meanings))


def groups_table(groups: Groups) -> Markup:
  """A row per measure of geometry, a column per group, and what the number means."""
  rows = []
  for measure in _MEASURES:
    values = [measure.value(group) for group in groups]
    if all(value is None for value in values):
      continue
    said = [measure.meaning]
    for group, value in zip(groups, values, strict=True):
      if value is not None and measure.reading:
        who = f'{group.label}: ' if len(groups) > 1 else ''
        said.append(who + measure.reading(value, len(group.expert_ids)))
    rows.append([measure.name, *map(_plain, values), ' '.join(said)])
  if not rows:
    return tag(
      'p',
      'How the experts lie to each other was not measured: run tools.diagnose with '
      '--base and two --experts or more.',
      class_='missing',
    )
  names = [g.label for g in groups] if len(groups) > 1 else ['value']
  kinds = ['text', *([''] * len(groups)), 'prose']
  return _table(['', *names, 'what it means'], kinds, rows)


@dataclasses.dataclass(frozen=True)
class _Column:
  """`name` is what a reader sees, `total` what `GroupDiagnosis.totals` calls it."""

  name: str
  total: str
  meaning: str
  percent: bool = True

  def value(self, group: GroupDiagnosis, expert: int) -> float | None:
    return _first(_total(group, self.total), expert, self.percent)


@dataclasses.dataclass(frozen=True)
class _Measure:
  name: str
  total: str
  meaning: str
  reading: Callable[[float, int], str] | None = None
  percent: bool = False

  def value(self, group: GroupDiagnosis) -> float | None:
    """Over all pairs, of measures that have one number for each."""
    held = numbers(_total(group, self.total))
    return (100 if self.percent else 1) * statistics.fmean(held) if held else None


def _total(group: GroupDiagnosis, name: str) -> Any:
  """A number over all tensors, or the mean over matrices."""
  total = group.totals.get(name)
  return total.get('mean') if isinstance(total, Mapping) else total


def _first(total: Any, expert: int, percent: bool) -> float | None:
  """Of an expert; of its energies, the first."""
  of_one = numbers((total or [])[expert : expert + 1])
  return (100 if percent else 1) * of_one[0] if of_one else None


def _percent(value: float | None) -> str:
  return '–' if value is None else f'{value:.3g}\u00a0%'


def _plain(value: float | None) -> str:
  if value is None:
    return '–'
  return (f'{value:.3g}' if abs(value) >= 1 else f'{value:.3f}').replace('-', '−')


_COLUMNS = (
  _Column(
    'length beside the base',
    'relative_norm',
    'Length of the whole update over the length of the whole base: how far training '
    'moved the model.',
  ),
  _Column(
    'unchanged entries',
    'zero_fraction',
    'The share of all weights that are exactly those of the base.',
  ),
  _Column(
    'below a step',
    'below_step',
    'Of the changed entries, the share that moves by less than a step of the output '
    'dtype.',
  ),
  _Column(
    'leading energy',
    'energy',
    'The share of a matrix’s update that lies in one direction, in squared length (mean '
    'over matrices). The more, the more of it is in the head.',
  ),
  _Column(
    'stable rank',
    'stable_rank',
    'How many directions as strong as the first the update of a matrix would fill '
    '(mean over matrices).',
    percent=False,
  ),
  _Column(
    'effective rank',
    'effective_rank',
    'How many directions the update of a matrix uses, weak ones included (mean over '
    'matrices).',
    percent=False,
  ),
)


NEAR = 0.05  # differences of cosines up to which a sentence makes nothing of them


def _against_chance(value: float, n: int) -> str:
  """One sentence that is true of the number."""
  if n < 2:
    return 'One expert: it agrees with itself.'
  at = chance(n)
  angles = f'what {n} of one length at right angles would give ({at:.2f})'
  if abs(value - at) <= NEAR:
    return f'{value:.2f} is about {angles}.'
  return f'{value:.2f} is {"more" if value > at else "less"} than {angles}.'


def _against_zero(value: float, n: int) -> str:
  if n < 2:
    return 'One expert: there is no pair.'
  if abs(value) <= NEAR:
    return f'At {_plain(value)} they are nearly at right angles on average.'
  return (
    f'At {_plain(value)} they '
    + ('reinforce' if value > 0 else 'weaken')
    + ' each other on average.'
  )


_MEASURES = (
  _Measure(
    'Agreement of residuals, c_R',
    'c_R',
    'Mean cosine of the residuals to their common direction; 1 if they are alike.',
    _against_chance,
  ),
  _Measure(
    'Agreement of heads, S_H',
    'S_H',
    'Mean positive cosine between heads: the gate that lets ResMerge add the mean head. '
    '0 shuts it, 1 opens it fully.',
  ),
  _Measure(
    'Retention of heads, Ret_H',
    'retention_head',
    'What plain averaging keeps of the heads’ length.',
    _against_chance,
  ),
  _Measure(
    'Retention of residuals, Ret_R',
    'retention_residual',
    'What plain averaging keeps of the residuals’ length.',
    _against_chance,
  ),
  _Measure(
    'Cosine of heads',
    'cos_head_pairs',
    'Mean cosine between the heads of two experts.',
    _against_zero,
  ),
  _Measure(
    'Cosine of residuals',
    'cos_residual_pairs',
    'Mean cosine between the residuals of two experts.',
    _against_zero,
  ),
  _Measure(
    'Cosine of updates',
    'cos_delta_pairs',
    'Cosine between the whole updates of two experts, all tensors together.',
    _against_zero,
  ),
  _Measure(
    'Sign conflicts, %',
    'sign_conflict',
    'Of the entries that two or more experts change, the share with different signs.',
    percent=True,
  ),
)


def _table(header: list[str], kinds: list[str], rows: list[list[str]]) -> Markup:
  """On a narrow page every row is a card, its cells named by `data-name`."""
  columns = list(zip(header, kinds, strict=True))
  head = [tag('th', name, class_=kind) for name, kind in columns]
  body = [
    tag(
      'tr',
      *(
        tag('td', cell, class_=kind, data_name=None if kind else name)
        for (name, kind), cell in zip(columns, row, strict=True)
      ),
    )
    for row in rows
  ]
  table = tag(
    'table', tag('thead', tag('tr', *head)), tag('tbody', *body), class_='cards'
  )
  return tag('div', table, class_='scroll free', tabindex=0)
