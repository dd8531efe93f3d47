"""Figures over decoder layers: one panel per family, lines per expert, group or measure."""

import dataclasses
import itertools
from collections.abc import Sequence

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report.axis import spans_decades
from resmerge_jax.report.chart import COLOURS, DASHES, Key
from resmerge_jax.report.figure import Figure, Missing, Table
from resmerge_jax.report.lines import MANY, Lines, Series
from resmerge_jax.report.values import FAMILY_NAMES, Pick, Point, by_layer, families

_MEANS = ' Lines: means over the {what} of a layer{bands}.'


@dataclasses.dataclass(frozen=True)
class Measure:
  """What a line shows: its name in the legend, and where records have it.

  `colour`: where one group is drawn; several have a colour each.
  """

  label: str
  pick: Pick
  colour: int = 0


@dataclasses.dataclass(frozen=True)
class LayerFigure:
  """What `draw` needs to know. `how` to get the numbers is said where there are none.

  `by_expert`: a line per expert where one group shows one measure; `of`: what lines are
  means over. `references`: values with a name, drawn across.
  """

  name: str
  title: str
  caption: str
  measures: tuple[Measure, ...]
  y_label: str
  how: str
  by_expert: bool = False
  of: str = 'matrices and experts'
  references: tuple[tuple[float, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class _Line:
  key: Key
  group: GroupDiagnosis
  pick: Pick
  expert: int | None


def draw(spec: LayerFigure, groups: Sequence[GroupDiagnosis]) -> Figure | Missing:
  """The figure, or what is missing. Lines without any number are left out."""
  shown = families(groups, [measure.pick for measure in spec.measures])
  found = {
    family: [
      (line, by_layer(line.group, family, line.pick, line.expert))
      for line in _lines(spec, groups)
    ]
    for family in shown
  }
  lines = [
    line
    for i, line in enumerate(_lines(spec, groups))
    if any(found[family][i][1] for family in shown)
  ]
  if not lines:
    return Missing(spec.title, spec.how)
  drawn = {
    family: [(line, points) for line, points in found[family] if line in lines]
    for family in shown
  }
  return _figure(spec, drawn, [line.key for line in lines])


def apart(
  groups: Sequence[GroupDiagnosis],
) -> list[tuple[Key, GroupDiagnosis, int | None]]:
  """What one measure is drawn for: each expert of one group, or each of several groups."""
  if len(groups) > 1:
    return [
      (Key(group.label, g % COLOURS), group, None) for g, group in enumerate(groups)
    ]
  return [
    (Key(name, i % COLOURS, i // COLOURS % len(DASHES)), groups[0], i)
    for i, name in enumerate(groups[0].expert_ids)
  ]


def _lines(spec: LayerFigure, groups: Sequence[GroupDiagnosis]) -> list[_Line]:
  if len(spec.measures) == 1 and (spec.by_expert or len(groups) > 1):
    pick = spec.measures[0].pick
    return [_Line(key, group, pick, expert) for key, group, expert in apart(groups)]
  if len(groups) > 1:
    return [
      _Line(Key(f'{group.label}: {m.label}', g % COLOURS, dash), group, m.pick, None)
      for g, group in enumerate(groups)
      for dash, m in enumerate(spec.measures)
    ]
  return [
    _Line(Key(m.label, m.colour, i), groups[0], m.pick, None)
    for i, m in enumerate(spec.measures)
  ]


def _figure(
  spec: LayerFigure,
  drawn: dict[str, list[tuple[_Line, dict[int, Point]]]],
  keys: list[Key],
) -> Figure:
  points = [p for lines in drawn.values() for _, held in lines for p in held.values()]
  bands = len(keys) <= MANY and any(p.low < p.high for p in points)
  references = tuple(
    (value, Key(label, 0, kind='reference')) for value, label in spec.references
  )
  held = [v for p in points for v in ((p.low, p.high) if bands else (p.mean,))]
  log = spans_decades([*held, *(value for value, _ in references)])
  panels = tuple(
    _panel(spec, family, lines, bands, tuple(held), references, log)
    for family, lines in drawn.items()
  )
  single = all(line.expert is not None for lines in drawn.values() for line, _ in lines)
  means = _MEANS.format(
    what='matrices' if single else spec.of,
    bands='; bands: from the smallest to the largest' if bands else '',
  )
  return Figure(
    spec.name,
    spec.title,
    spec.caption + means,
    (*keys, *(key for _, key in references)),
    panels,
    _table(drawn, keys, bands),
  )


def _panel(
  spec: LayerFigure,
  family: str,
  lines: list[tuple[_Line, dict[int, Point]]],
  bands: bool,
  held: tuple[float, ...],
  references: tuple[tuple[float, Key], ...],
  log: bool,
) -> Lines:
  x = tuple(sorted(set(itertools.chain.from_iterable(points for _, points in lines))))
  series = []
  for line, points in lines:
    at = [points.get(layer) for layer in x]
    low = tuple(p.low if p else None for p in at) if bands else ()
    high = tuple(p.high if p else None for p in at) if bands else ()
    series.append(Series(line.key, tuple(p.mean if p else None for p in at), low, high))
  return Lines(
    FAMILY_NAMES[family], x, tuple(series), 'decoder layer', spec.y_label,
    held=held, references=references, log=log,
  )  # fmt: skip


def _table(
  drawn: dict[str, list[tuple[_Line, dict[int, Point]]]], keys: list[Key], bands: bool
) -> Table:
  header = ['family', 'layer']
  for key in keys:
    header += [key.label, *(['smallest', 'largest'] if bands else [])]
  rows = []
  for family, lines in drawn.items():
    for layer in sorted({layer for _, points in lines for layer in points}):
      row: list[str | int | float | None] = [family, layer]
      for _, points in lines:
        p = points.get(layer)
        shown = (p.mean, p.low, p.high) if p else (None, None, None)
        row += shown if bands else shown[:1]
      rows.append(tuple(row))
  return Table(tuple(header), tuple(rows))
