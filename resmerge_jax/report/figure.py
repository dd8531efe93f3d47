"""A figure: panels side by side under one legend, its numbers behind it.

On a page the panels are apart, so that a narrow one shows them below each other; as a
file they are one picture.
"""

import dataclasses
from collections.abc import Sequence

from resmerge_jax.report import style
from resmerge_jax.report.chart import WIDTH, Key, shorten, swatch
from resmerge_jax.report.lines import Lines
from resmerge_jax.report.markup import Markup, tag
from resmerge_jax.report.rows import Bars, Boxes

Panel = Lines | Boxes | Bars
SVG = 'http://www.w3.org/2000/svg'  # the name of the language, which no browser fetches
_LINE = 20.0
_LETTER = 8.6  # of a title's pixels, on the large side


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of text and numbers; text columns come first. None: no number."""

  header: tuple[str, ...]
  rows: tuple[tuple[str | int | float | None, ...], ...]


@dataclasses.dataclass(frozen=True)
class Figure:
  """`name` is that of its file. The caption says what is shown, and how to read it."""

  name: str
  title: str
  caption: str
  legend: tuple[Key, ...]
  panels: tuple[Panel, ...]
  table: Table


@dataclasses.dataclass(frozen=True)
class Missing:
  """In the place of a figure: what could not be drawn, and how to get it."""

  title: str
  how: str


def as_html(figure: Figure) -> Markup:
  entries = [
    tag(
      'li', tag('svg', swatch(key), viewBox='0 0 30 14', aria_hidden='true'), key.label
    )
    for key in figure.legend
  ]
  panels = [
    tag(
      'svg', panel.draw(), viewBox=f'0 0 {WIDTH} {panel.height:g}',
      role='img', aria_label=f'{figure.title}: {panel.title}',
    )
    for panel in figure.panels
  ]  # fmt: skip
  return tag(
    'figure',
    tag('h3', figure.title),
    tag('figcaption', figure.caption),
    tag('ul', *entries, class_='legend') if entries else '',
    tag('div', *panels, class_='panels'),
    tag(
      'details',
      tag('summary', f'The numbers ({len(figure.table.rows):,} rows)'),
      table_html(figure.table),
    ),
    id=figure.name,
  )


def table_html(table: Table, sortable: bool = False) -> Markup:
  """Columns that hold text anywhere are text, and lie left."""
  texts = [
    any(isinstance(row[i], str) for row in table.rows) for i in range(len(table.header))
  ]
  kinds = ['text' if text else None for text in texts]
  header = [tag('th', h, class_=k) for h, k in zip(table.header, kinds, strict=True)]
  rows = [
    tag(
      'tr', *(tag('td', number(c), class_=k) for c, k in zip(row, kinds, strict=True))
    )
    for row in table.rows
  ]
  body = tag(
    'table',
    tag('thead', tag('tr', *header)),
    tag('tbody', *rows),
    class_='sortable' if sortable else None,
  )
  return tag('div', body, class_='scroll', tabindex=0)


def number(value: str | int | float | None) -> str:
  """Four digits, as a reader takes them; a dash where there is no number."""
  if value is None:
    return '–'
  if isinstance(value, float):
    text = f'{value:.4g}' if abs(value) < 10000 else f'{value:,.0f}'
    return text.replace('-', '−')
  return f'{value:,}' if isinstance(value, int) else value


def as_file(figure: Figure) -> str:
  """The whole figure as one SVG file, which follows a dark page as the report does."""
  columns = min(len(figure.panels), 2)
  width = WIDTH * columns + 20 * (columns - 1) + 24
  parts = [tag('rect', width='100%', height='100%', fill='var(--page)')]
  y = 16.0
  for line in wrapped(figure.title, int((width - 40) / _LETTER)):
    parts.append(tag('text', line, class_='title', x=24, y=y + 14))
    y += _LINE
  legend, y = _legend(figure.legend, width, y + 4)
  parts += legend
  y += 12
  for i in range(0, len(figure.panels), columns):
    row = figure.panels[i : i + columns]
    for j, panel in enumerate(row):
      at = f'translate({12 + j * (WIDTH + 20)} {y:g})'
      parts.append(tag('g', panel.draw(), transform=at))
    y += max(panel.height for panel in row)
  return '<?xml version="1.0" encoding="utf-8"?>\n' + tag(
    'svg', tag('title', figure.title), tag('style', Markup(style.FIGURE)), *parts,
    xmlns=SVG, width=width, height=y + 8, viewBox=f'0 0 {width} {y + 8:g}',
  ) + '\n'  # fmt: skip


def wrapped(text: str, letters: int) -> list[str]:
  """Lines of at most so many letters, unless a word is longer."""
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if len(longer) > letters and lines[-1]:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines


def _legend(keys: Sequence[Key], width: float, y: float) -> tuple[list[Markup], float]:
  """Entries side by side as far as they fit, and where they end."""
  parts, x = [], 24.0
  for key in keys:
    label = shorten(key.label, width - 100)
    needs = 38 + 7.2 * len(label) + 16
    if x > 24 and x + needs > width - 12:
      x, y = 24.0, y + _LINE
    at = f'translate({x:.1f} {y:g})'
    parts.append(tag('g', swatch(key), tag('text', label, x=38, y=11), transform=at))
    x += needs
  return parts, y + (_LINE if keys else 0)
