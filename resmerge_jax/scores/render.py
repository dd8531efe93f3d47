"""A table of scores as Markdown, HTML and CSV."""

import csv
import html
import io

from resmerge_jax.errors import InputError
from resmerge_jax.scores.categories import OVERALL, Categories
from resmerge_jax.scores.table import DECIMALS, Printed, Row, rounded

MISSING = '—'
SUFFIXES = ('.md', '.html', '.csv')
_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: Canvas }
thead tr:first-child th { text-align: center }
thead tr:last-child th { border-bottom: 1px solid }
.average { border-right: 1px solid color-mix(in srgb, currentColor 30%, transparent) }
""".strip()


def render(
  suffix: str,
  rows: list[Row],
  categories: Categories,
  baseline: str | None,
  printed: list[Printed],
) -> str:
  """The table in the form of a file name's `suffix`, one of SUFFIXES."""
  notes = notes_on(rows, categories, printed)
  if suffix == '.md':
    return _markdown(rows, categories, baseline, notes)
  if suffix == '.html':
    return _html(rows, categories, baseline, notes)
  if suffix == '.csv':
    return _csv(rows, categories, baseline)
  raise InputError(
    f'no table is written as {suffix!r}', fix=f'use {", ".join(SUFFIXES)}'
  )


def notes_on(
  rows: list[Row], categories: Categories, printed: list[Printed]
) -> list[str]:
  """What a reader must know: missing scores, printed averages that do not follow."""
  notes = [
    f'{row.model}: no score of {", ".join(missing)}; no average over them is formed'
    for row in rows
    if (missing := row.missing(categories))
  ]
  if not printed:
    return notes
  same = sum(p.verdict == 'same' for p in printed)
  notes.append(f'printed averages: {same} of {len(printed)} follow from the benchmarks')
  return notes + [
    f'{p.found.model}, {p.found.column}: printed {p.found.text}, computed '
    f'{_text(p.computed, p.decimals + 1)}' + _REASONS[p.verdict]
    for p in printed
    if p.verdict != 'same'
  ]


_REASONS = {
  'rounding': ' (rounding of the benchmarks may explain it)',
  'differs': ' (does not follow)',
  'unknown': ' (benchmarks are missing)',
}


def _text(number: float | None, decimals: int = DECIMALS) -> str:
  return MISSING if number is None else str(rounded(number, decimals))


def _columns(categories: Categories) -> list[str]:
  columns = []
  for category, benchmarks in categories.items():
    columns += [*(b.name for b in benchmarks), category]
  return [*columns, OVERALL]


def _cells(
  row: Row, rows: list[Row], columns: list[str], baseline: str | None, bold: str
) -> list[str]:
  """Text of a row; the best of a column is put into `bold`, '%s' for its number."""
  cells = []
  for column in columns:
    numbers = [_text(r.percent[column]) for r in rows if r.percent[column] is not None]
    text = _text(row.percent[column])
    is_best = len(numbers) > 1 and text == max(numbers, key=float)
    cells.append(bold % text if is_best else text)
  if baseline is not None:
    cells.append(MISSING if row.difference is None else f'{rounded(row.difference):+}')
  return [*cells, MISSING if row.rank is None else str(row.rank)]


def _heads(
  columns: list[str], categories: Categories, baseline: str | None
) -> list[str]:
  heads = [f'{c} average' if c in categories else c for c in columns]
  return [*heads, *([f'vs {baseline}'] if baseline is not None else []), 'Rank']


def _markdown(
  rows: list[Row], categories: Categories, baseline: str | None, notes: list[str]
) -> str:
  columns = _columns(categories)
  heads = ['Model', *_heads(columns, categories, baseline)]
  lines = [heads, ['---', *('---:' for _ in heads[1:])]]
  lines += [[r.model, *_cells(r, rows, columns, baseline, '**%s**')] for r in rows]
  table = [
    '| ' + ' | '.join(cell.replace('|', r'\|') for cell in line) + ' |'
    for line in lines
  ]
  return '\n'.join([*table, *(['', *(f'* {note}' for note in notes)] if notes else [])])


def _html(
  rows: list[Row], categories: Categories, baseline: str | None, notes: list[str]
) -> str:
  columns = _columns(categories)
  after = _heads(columns, categories, baseline)[len(columns) - 1 :]
  groups = [(name, len(row) + 1) for name, row in categories.items()]
  top = '<th></th>' + ''.join(
    f'<th colspan="{span}">{html.escape(name)}</th>' for name, span in groups
  )
  second = [
    ('Average' if c in categories else c, c in categories) for c in columns[:-1]
  ]
  second += [(head, False) for head in after]
  lines = [
    f'<tr>{top}<th colspan="{len(after)}"></th></tr>',
    '<tr><th>Model</th>' + ''.join(_cell('th', *head) for head in second) + '</tr>',
  ]
  body = []
  for row in rows:
    cells = _cells(row, rows, columns, baseline, '<b>%s</b>')
    averages = [c in categories for c in columns] + [False] * 2
    body.append(
      f'<tr><td>{html.escape(row.model)}</td>'
      + ''.join(
        f'<td class="average">{cell}</td>' if average else f'<td>{cell}</td>'
        for cell, average in zip(cells, averages, strict=False)
      )
      + '</tr>'
    )
  below = ''.join(f'<li>{html.escape(note)}</li>\n' for note in notes)
  return '\n'.join(
    [
      '<!doctype html>',
      '<html lang="en"><head><meta charset="utf-8"><title>Scores</title>',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<style>\n{_STYLE}\n</style></head><body>',
      '<p>Percent. The best of each column is bold.</p>',
      '<div class="wide"><table><thead>',
      *lines,
      '</thead><tbody>',
      *body,
      '</tbody></table></div>',
      *([f'<ul>\n{below}</ul>'] if notes else []),
      '</body></html>',
    ]
  )


def _cell(tag: str, text: str, average: bool) -> str:
  kind = ' class="average"' if average else ''
  return f'<{tag}{kind}>{html.escape(text)}</{tag}>'


def _csv(rows: list[Row], categories: Categories, baseline: str | None) -> str:
  """Numbers with four decimals, empty where missing."""
  columns = _columns(categories)
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['Model', *_heads(columns, categories, baseline)])
  for row in rows:
    numbers = [row.percent[column] for column in columns]
    numbers += [row.difference] if baseline is not None else []
    cells = ['' if n is None else f'{n:.4f}' for n in numbers]
    writer.writerow([row.model, *cells, row.rank or ''])
  return out.getvalue().rstrip('\n')
