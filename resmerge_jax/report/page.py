"""report.html: one file, no network; findings first, then numbers, pictures, tables."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from resmerge_jax.diagnostics.diagnosis import (
  LEVELS,
  Diagnosis,
  Finding,
  GroupDiagnosis,
)
from resmerge_jax.report import figure, style, summary, tensors
from resmerge_jax.report.figure import Figure, Missing, number
from resmerge_jax.report.markup import Markup, join, tag
from resmerge_jax.report.values import Record, numbers
from resmerge_jax.version import __version__

Section = tuple[str, str, Sequence[Figure | Missing]]  # id, title, figures
_READING = (
  'D is the update of one expert: its weights less those of the base. The head is what '
  'the leading singular directions hold, the residual the rest. Pictures by layer show '
  'matrices; vectors, and tensors outside the decoder layers, are in the table of tensors only.'
)
MOST_TENSORS = 20  # of a finding
MOST_FACTS = 60
_SORT = """
document.querySelectorAll('table.sortable th').forEach(th=>th.onclick=()=>{
const i=th.cellIndex,body=th.closest('table').tBodies[0],down=th.dataset.down=th.dataset.down?'':'1';
const key=row=>{const t=row.cells[i].textContent.replace(/,/g,'').replace('−','-');
return t===''||isNaN(t)?t:+t};
[...body.rows].map(r=>[key(r),r]).sort(([a],[b])=>
(a==='–')-(b==='–')||(down?-1:1)*(a<b?-1:a>b?1:0)).forEach(([,r])=>body.append(r))})
"""


def page(diagnosis: Diagnosis, sections: Sequence[Section]) -> str:
  """The whole report, a function of its arguments alone."""
  groups = diagnosis.groups
  labels = ', '.join(group.label for group in groups)
  title = f'Diagnosis of {labels}'
  anchors = [('check-up', 'Check-up'), ('summary', 'Summary')]
  anchors += [(key, name) for key, name, _ in sections]
  anchors += [('tensors', 'Tensors'), ('how', 'How it was computed')]
  links = [tag('a', name, href=f'#{key}') for key, name in anchors]
  body = [
    tag('h1', title),
    *(_subject(group, len(groups) > 1) for group in groups),
    tag('nav', *links),
    tag('h2', 'Check-up', id='check-up'),
    _checkup(groups),
    tag('h2', 'Summary', id='summary'),
    summary.experts(groups),
    summary.groups_table(groups),
    tag('p', _READING, class_='soft'),
    *(_section(*section) for section in sections),
    tag('h2', 'Tensors', id='tensors'),
    tag(
      'p', 'Numbers of several experts or pairs are means. A click on a heading sorts.'
    ),
    tensors.as_html(groups),
    tag('h2', 'How it was computed', id='how'),
    *(_how(group, len(groups) > 1) for group in groups),
    tag('p', f'Written by resmerge_jax {__version__}.', class_='soft'),
    tag('script', Markup(_SORT)),
  ]
  head = [
    tag('meta', charset='utf-8'),
    tag('meta', name='viewport', content='width=device-width,initial-scale=1'),
    tag('meta', name='color-scheme', content='light dark'),
    tag('title', title),
    tag('style', Markup(style.PAGE)),
  ]
  return '<!doctype html>\n' + tag(
    'html', '\n', tag('head', *head), '\n', tag('body', join(body, '\n')), lang='en'
  ) + '\n'  # fmt: skip


def _subject(group: GroupDiagnosis, named: bool) -> Markup:
  """One line on what was diagnosed."""
  n = len(group.expert_ids)
  layers = {record.get('layer') for record in group.records} - {None}
  facts = f'{n} expert{"s" * (n != 1)} of '
  names = f': {", ".join(group.expert_ids)}. {len(group.records):,} tensors'
  depth = f', {len(layers)} decoder layers' if layers else ''
  label = tag('b', f'{group.label}: ') if named else ''
  return tag('p', label, facts, tag('code', group.base), f'{names}{depth}.')


def _checkup(groups: Sequence[GroupDiagnosis]) -> Markup:
  """A card per finding; those of one kind, with the same words of advice, share one."""
  found = [(group.label, finding) for group in groups for finding in group.findings]
  if not found:
    return tag(
      'p', 'No finding: what was measured shows nothing that the check-up looks for.'
    )
  found.sort(key=lambda pair: LEVELS.index(pair[1].level))  # stable: groups in order
  tally = []
  for level in LEVELS:
    count = sum(finding.level == level for _, finding in found)
    name = tag('span', f'{level}{"s" * (count != 1)}', class_=level)
    tally.append(tag('li', tag('b', f'{count} '), name))
  cards = []
  for _, alike in itertools.groupby(
    found,
    key=lambda pair: dataclasses.replace(pair[1], what=''),
  ):
    pairs = list(alike)
    facts = [f'{label}: {f.what}' if len(groups) > 1 else f.what for label, f in pairs]
    cards.append(_card(pairs[0][1], facts))
  return tag('div', tag('ul', *tally, class_='tally'), *cards)


def _card(finding: Finding, facts: Sequence[str]) -> Markup:
  """The finding with its words, of several facts that share them."""
  shown = finding.tensors[:MOST_TENSORS]
  rest = len(finding.tensors) - len(shown)
  count = f'{len(finding.tensors):,} tensor{"s" * (len(finding.tensors) != 1)}'
  items = [tag('li', tag('code', name)) for name in shown]
  if rest:
    items.append(tag('li', f'and {rest:,} more'))
  level = tag('span', finding.level, class_='level')
  return tag(
    'div',
    *(tag('div', level, tag('h4', fact)) for fact in facts),
    tag('p', tag('b', 'What it does: '), finding.consequence),
    tag('p', tag('b', 'What to do: '), finding.advice),
    tag('details', tag('summary', count), tag('ul', *items)) if shown else '',
    class_=f'finding {finding.level}',
  )


def _section(key: str, title: str, figures: Sequence[Figure | Missing]) -> Markup:
  drawn = [figure.as_html(one) for one in figures if isinstance(one, Figure)]
  missing = [one for one in figures if isinstance(one, Missing)]
  items = [tag('li', tag('b', f'{one.title}: '), f'{one.how}.') for one in missing]
  note = tag(
    'div', tag('p', 'Not shown, as the records do not have it:'), tag('ul', *items),
    class_='missing',
  )  # fmt: skip
  return join([tag('h2', title, id=key), *drawn, *([note] if missing else [])], '\n')


def _how(group: GroupDiagnosis, named: bool) -> Markup:
  """Exact or estimated, with the errors; what is absent and why; the merge's facts."""
  facts = _head_facts(group.records) + _rank_facts(group.records)
  facts += list(_flat(group.merge or {}))
  shown = facts[:MOST_FACTS]
  if len(facts) > len(shown):
    shown.append(('', f'and {len(facts) - len(shown):,} more in manifest.json'))
  terms = [part for term, said in shown for part in (tag('dt', term), tag('dd', said))]
  notes = [tag('li', note) for note in group.notes]
  return tag(
    'div',
    tag('h3', group.label) if named else '',
    tag('dl', *terms) if terms else '',
    tag('ul', *notes) if notes else '',
  )


def _head_facts(records: Sequence[Record]) -> list[tuple[str, str]]:
  heads = [record for record in records if record.get('sigma')]
  if not heads:
    return [('heads', 'none in the records')]
  total = sum(len(record['sigma']) for record in heads)
  rank = max(len(of_one) for record in heads for of_one in record['sigma'])
  by = ' singular triplets, block Krylov iteration in float32'
  said = f'{total:,} heads of {rank}{by}'
  for name, meaning in (
    ('certified', 'proved to miss no larger direction'),
    ('float64_head', 'solved again in float64'),
  ):
    count = sum(bool(flag) for record in heads for flag in record.get(name) or ())
    said += f'; {count:,} {meaning}'
  errors = [e for record in heads for e in numbers(record.get('head_error_estimate'))]
  worst = f'{max(errors):.1e}, an estimate' if errors else 'not recorded'
  return [('heads', f'{said}.'), ('largest relative error of a head', worst)]


def _rank_facts(records: Sequence[Record]) -> list[tuple[str, str]]:
  ways = [
    record['effective_rank_by'] for record in records if record.get('effective_rank_by')
  ]
  if not ways:
    return [('effective rank', 'not computed')]
  exact, estimated = ways.count('exact'), ways.count('estimate')
  return [
    ('effective rank', f'{exact:,} matrices exactly, {estimated:,} by an estimate')
  ]


def _flat(facts: Mapping[str, Any], before: str = 'merge: ') -> list[tuple[str, str]]:
  """Nested facts as dotted names; tables of files and rules stay in the manifest."""
  rows: list[tuple[str, str]] = []
  for key, value in facts.items():
    if isinstance(value, Mapping):
      rows += _flat(value, f'{before}{key}.')
    elif isinstance(value, list | tuple):
      if all(isinstance(item, str | int | float) for item in value):
        rows.append((f'{before}{key}', ', '.join(map(str, value)) or 'none'))
    else:
      rows.append(
        (f'{before}{key}', number(value) if isinstance(value, float) else str(value))
      )
  return rows
