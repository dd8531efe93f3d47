"""The numbers to read first, each with a sentence that says what it means."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report.geometry import chance
from resmerge_jax.report.markup import Markup, tag
from resmerge_jax.report.values import Pick, energy, field, numbers, overall

Groups = Sequence[GroupDiagnosis]


def experts(groups: Groups) -> Markup:
  """A row per expert. Columns without a number anywhere are left out."""
  columns = [
    column
    for column in _COLUMNS
    if any(
      column.of(group, i) is not None
      for group in groups
      for i in range(len(group.expert_ids))
    )
  ]
  header = ['group', 'expert', *(column.name for column in columns)]
  rows = [
    [group.label, name, *(column.show(column.of(group, i)) for column in columns)]
    for group in groups
    for i, name in enumerate(group.expert_ids)
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
    found = [overall(group, measure.pick) for group in groups]
    if not any(found):
      continue
    said = [measure.meaning]
    for group, p in zip(groups, found, strict=True):
      if p and measure.reading:
        who = f'{group.label}: ' if len(groups) > 1 else ''
        said.append(who + measure.reading(p.mean, len(group.expert_ids)))
    values = [_plain(p.mean if p else None) for p in found]
    rows.append([measure.name, *values, ' '.join(said)])
  if not rows:
    return tag(
      'p',
      'How the experts lie to each other was not measured: run tools.diagnose on the '
      'base and two experts or more.',
      class_='missing',
    )
  names = [g.label for g in groups] if len(groups) > 1 else ['mean over matrices']
  kinds = ['text', *([''] * len(groups)), 'prose']
  return _table(['', *names, 'what it means'], kinds, rows)


@dataclasses.dataclass(frozen=True)
class _Column:
  name: str
  meaning: str
  of: Callable[[GroupDiagnosis, int], float | None]
  show: Callable[[float | None], str]


@dataclasses.dataclass(frozen=True)
class _Measure:
  name: str
  meaning: str
  pick: Pick
  reading: Callable[[float, int], str] | None = None


def _relative(group: GroupDiagnosis, expert: int) -> float | None:
  """||D_i|| / ||W_0|| over all tensors that have both."""
  squares = [0.0, 0.0]
  for record in group.records:
    delta = numbers((record.get('delta_norm') or [])[expert : expert + 1])
    base = numbers(record.get('base_norm'))
    if delta and base:
      squares[0] += delta[0] ** 2
      squares[1] += base[0] ** 2
  return 100 * math.sqrt(squares[0] / squares[1]) if squares[1] else None


def _unchanged(group: GroupDiagnosis, expert: int) -> float | None:
  """Share of zeros over all entries of all tensors."""
  zeros = size = 0.0
  for record in group.records:
    share = numbers((record.get('zero_fraction') or [])[expert : expert + 1])
    if share:
      entries = math.prod(record.get('shape', ()))
      zeros, size = zeros + share[0] * entries, size + entries
  return 100 * zeros / size if size else None


def _mean(pick: Pick) -> Callable[[GroupDiagnosis, int], float | None]:
  def of(group: GroupDiagnosis, expert: int) -> float | None:
    found = overall(group, pick, expert)
    return found.mean if found else None

  return of


def _percent(value: float | None) -> str:
  return '–' if value is None else f'{value:.3g} %'


def _plain(value: float | None) -> str:
  return '–' if value is None else f'{value:.3g}'.replace('-', '−')


_COLUMNS = (
  _Column(
    'length beside the base',
    'Length of the whole update over the length of the whole base: how far training '
    'moved the model.',
    _relative,
    _percent,
  ),
  _Column(
    'unchanged entries',
    'The share of all weights that are exactly those of the base.',
    _unchanged,
    _percent,
  ),
  _Column(
    'below a step',
    'Of the changed entries, the share that moves by less than a step of the output '
    'dtype (mean over matrices).',
    _mean(field('below_step', 100.0)),
    _percent,
  ),
  _Column(
    'leading energy',
    'The share of a matrix’s update that lies in one direction, in squared length (mean '
    'over matrices). The more, the more of it is in the head.',
    _mean(energy(1)),
    _percent,
  ),
  _Column(
    'stable rank',
    'How many directions as strong as the first the update of a matrix would fill '
    '(mean over matrices).',
    _mean(field('stable_rank')),
    _plain,
  ),
  _Column(
    'effective rank',
    'How many directions the update of a matrix uses, weak ones included (mean over '
    'matrices).',
    _mean(field('effective_rank')),
    _plain,
  ),
)


def _against_chance(value: float, n: int) -> str:
  """One sentence that is true of the number."""
  if n < 2:
    return 'One expert: it agrees with itself.'
  at = chance(n)
  angles = f'what {n} at right angles would give ({at:.2f})'
  if abs(value - at) <= 0.02:
    return f'{value:.2f} is about {angles}.'
  return f'{value:.2f} is {"more" if value > at else "less"} than {angles}.'


def _against_zero(value: float, n: int) -> str:
  if n < 2:
    return 'One expert: there is no pair.'
  if abs(value) <= 0.02:
    return f'At {_plain(value)} they are nearly at right angles on average.'
  return (
    f'At {_plain(value)} they '
    + ('reinforce' if value > 0 else 'weaken')
    + ' each other on average.'
  )


_MEASURES = (
  _Measure(
    'Agreement of residuals, c_R',
    'Mean cosine of the residuals to their common direction; 1 if they are alike.',
    field('c_R'),
    _against_chance,
  ),
  _Measure(
    'Agreement of heads, S_H',
    'Mean positive cosine between heads: the gate that lets ResMerge add the mean head. '
    '0 shuts it, 1 opens it fully.',
    field('S_H'),
  ),
  _Measure(
    'Retention of heads, Ret_H',
    'What plain averaging keeps of the heads’ length.',
    field('retention_head'),
    _against_chance,
  ),
  _Measure(
    'Retention of residuals, Ret_R',
    'What plain averaging keeps of the residuals’ length.',
    field('retention_residual'),
    _against_chance,
  ),
  _Measure(
    'Cosine of updates',
    'Mean cosine between two whole updates of a matrix.',
    field('cos_delta_pairs'),
    _against_zero,
  ),
  _Measure(
    'Cosine of heads',
    'Mean cosine between two heads.',
    field('cos_head_pairs'),
    _against_zero,
  ),
  _Measure(
    'Cosine of residuals',
    'Mean cosine between two residuals.',
    field('cos_residual_pairs'),
    _against_zero,
  ),
  _Measure(
    'Sign conflicts, %',
    'Of the entries that two or more experts change, the share with opposite signs.',
    field('sign_conflict', 100.0),
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
