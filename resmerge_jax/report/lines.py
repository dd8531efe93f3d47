"""Panels of lines over whole numbers, with bands: layers, mostly."""

import dataclasses
from collections.abc import Sequence

from resmerge_jax.report import axis
from resmerge_jax.report.axis import Axis
from resmerge_jax.report.chart import (
  BOTTOM,
  DASHES,
  TOP,
  WIDTH,
  Key,
  heading,
  marker,
  x_ticks,
)
from resmerge_jax.report.markup import Markup, tag

MANY = 4  # of more series than these lines are thin, and bands say nothing
_HEIGHT = 270.0
_LEFT, _RIGHT = 56.0, 16.0
_MARKS = 12  # markers on a line


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of one line; low and high, if any, bound a band. None: no value there."""

  key: Key
  y: tuple[float | None, ...]
  low: tuple[float | None, ...] = ()
  high: tuple[float | None, ...] = ()

  def values(self) -> list[float]:
    return [v for v in (*self.y, *self.low, *self.high) if v is not None]


@dataclasses.dataclass(frozen=True)
class Lines:
  """Series over whole numbers x. `held`: values whose range the y axis must show too."""

  title: str
  x: tuple[int, ...]
  series: tuple[Series, ...]
  x_label: str
  y_label: str
  held: tuple[float, ...] = ()
  references: tuple[tuple[float, Key], ...] = ()
  log: bool = False

  height = _HEIGHT

  def draw(self) -> Markup:
    across = axis.whole(self.x, _LEFT, WIDTH - _RIGHT)
    bottom, top = self.height - BOTTOM, TOP
    values = [v for series in self.series for v in series.values()]
    values += [*self.held, *(value for value, _ in self.references)]
    make = axis.logarithmic if self.log else axis.linear
    up = make(values, bottom, top)
    label = self.y_label + (', log scale' if self.log else '')
    return tag(
      'g',
      *heading(self.title, label),
      *_y_ticks(up),
      tag('path', class_='axis', d=f'M{_LEFT:g} {bottom:g}H{WIDTH - _RIGHT:g}'),
      *x_ticks(across, top, bottom, self.x_label),
      *(_reference(up.at(value), key) for value, key in self.references),
      *(_band(series, self.x, across, up) for series in self.series),
      *(_line(series, self.x, across, up) for series in self.series),
      class_='many' if len(self.series) > MANY else None,
    )


def _y_ticks(up: Axis) -> list[Markup]:
  parts = []
  for value, text in up.ticks:
    y, right = up.at(value), WIDTH - _RIGHT
    parts.append(tag('path', class_='grid', d=f'M{_LEFT:g} {y:.1f}H{right:g}'))
    parts.append(tag('text', text, class_='tick end', x=_LEFT - 6, y=y + 4))
  return parts


def _reference(y: float, key: Key) -> Markup:
  d = f'M{_LEFT:g} {y:.1f}H{WIDTH - _RIGHT:g}'
  return tag('path', tag('title', key.label), class_='reference', d=d)


def _band(series: Series, x: Sequence[int], across: Axis, up: Axis) -> Markup:
  if not series.low:
    return Markup('')
  bounds = zip(x, series.low, series.high, strict=True)
  held = [
    (across.at(at), up.at(low), up.at(high))
    for at, low, high in bounds
    if low is not None and high is not None
  ]
  if len(held) < 2:
    return Markup('')
  there = 'L'.join(f'{at:.1f} {high:.1f}' for at, _, high in held)
  back = 'L'.join(f'{at:.1f} {low:.1f}' for at, low, _ in reversed(held))
  path = tag('path', class_='band', d=f'M{there}L{back}Z')
  return tag('g', path, class_=f'c{series.key.colour}')


def _line(series: Series, x: Sequence[int], across: Axis, up: Axis) -> Markup:
  """The line is broken where a value is missing; a point between gaps keeps its marker."""
  points = [
    None if y is None else (across.at(at), up.at(y))
    for at, y in zip(x, series.y, strict=True)
  ]
  runs = _runs(points)
  path = ''.join('M' + 'L'.join(f'{a:.1f} {b:.1f}' for a, b in run) for run in runs)
  every = -(-len(points) // _MARKS)
  first = series.key.colour % every  # lines that run together show all markers
  marked = [
    point
    for i, point in enumerate(points)
    if point and (i % every == first or [point] in runs)
  ]
  dash = DASHES[series.key.dash]
  return tag(
    'g',
    tag('title', series.key.label),
    tag('path', class_='line', d=path, stroke_dasharray=dash),
    *(marker(series.key, *point) for point in marked),
    class_=f'c{series.key.colour}',
  )


def _runs(
  points: Sequence[tuple[float, float] | None],
) -> list[list[tuple[float, float]]]:
  runs: list[list[tuple[float, float]]] = [[]]
  for point in points:
    if point is None:
      runs.append([])
    else:
      runs[-1].append(point)
  return [run for run in runs if run]
