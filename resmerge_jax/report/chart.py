"""Panels of figures, drawn as SVG: lines over layers, boxes and bars in rows.

A panel is WIDTH pixels wide whatever it shows, so that one column of panels fits a
telephone. Nothing here has a colour: classes c0 to c7 do, and `style` gives them one for
light and one for dark pages. What differs in colour differs in marker or dash too.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal

from resmerge_jax.report import axis
from resmerge_jax.report.axis import Axis
from resmerge_jax.report.markup import Markup, tag

WIDTH = 440
LINES_HEIGHT = 270
COLOURS = 8
DASHES = (None, '7 4', '2 4')
HEAD, RESIDUAL, WHOLE = 1, 0, 6  # colours: what is seen twice should look alike
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 16.0, 46.0, 42.0
_EDGE = 12.0  # of boxes and bars, which write their labels above
_LETTER = 8.0  # pixels per letter of a label, on the large side
_MARKS = 12  # markers on a line
MANY = 4  # of more series than these lines are thin, and bands say nothing
_MARKERS = (
  'M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z',
  'M-3.2 -3.2H3.2V3.2H-3.2Z',
  'M0 -4L3.8 3H-3.8Z',
  'M0 -4.4L4.4 0L0 4.4L-4.4 0Z',
  'M0 4L3.8 -3H-3.8Z',
  'M-1.2 -4H1.2V-1.2H4V1.2H1.2V4H-1.2V1.2H-4V-1.2H-1.2Z',
  'M-4 -4L0 -1.4L4 -4L1.4 0L4 4L0 1.4L-4 4L-1.4 0Z',
  'M0 -4.4L1.3 -1.3H4.4L2 .8L3 4L0 2L-3 4L-2 .8L-4.4 -1.3H-1.3Z',
)


@dataclasses.dataclass(frozen=True)
class Key:
  """How a series looks, and its name in the legend."""

  label: str
  colour: int  # 0 .. COLOURS - 1; those of HEAD, RESIDUAL and WHOLE stay theirs
  dash: int = 0  # of DASHES
  kind: Literal['line', 'box', 'block', 'reference'] = 'line'
  strength: float = 1.0  # opacity of a block


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

  height = float(LINES_HEIGHT)

  def draw(self) -> Markup:
    across = axis.whole(self.x, _LEFT, WIDTH - _RIGHT)
    bottom, top = self.height - _BOTTOM, _TOP
    values = [v for series in self.series for v in series.values()]
    values += [*self.held, *(value for value, _ in self.references)]
    make = axis.logarithmic if self.log else axis.linear
    up = make(values, bottom, top)
    label = self.y_label + (', log scale' if self.log else '')
    return tag(
      'g',
      *_heading(self.title, label),
      *_y_ticks(up),
      tag('path', class_='axis', d=f'M{_LEFT:g} {bottom:g}H{WIDTH - _RIGHT:g}'),
      *_x_ticks(across, top, bottom, self.x_label),
      *(_reference(up.at(value), key) for value, key in self.references),
      *(_band(series, self.x, across, up) for series in self.series),
      *(_line(series, self.x, across, up) for series in self.series),
      class_='many' if len(self.series) > MANY else None,
    )


@dataclasses.dataclass(frozen=True)
class Spread:
  """Smallest, lower quartile, median, upper quartile and largest of some values."""

  key: Key
  five: tuple[float, float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Boxes:
  """Rows of spreads, each with its label above, on one x axis."""

  title: str
  rows: tuple[tuple[str, tuple[Spread, ...]], ...]
  x_label: str
  held: tuple[float, ...] = ()

  @property
  def height(self) -> float:
    return _TOP + sum(_box_row(spreads) for _, spreads in self.rows) + _BOTTOM

  def draw(self) -> Markup:
    values = [v for _, row in self.rows for s in row for v in s.five]
    across = axis.linear([*values, *self.held], _EDGE + 8, WIDTH - _EDGE - 8)
    parts = [*_heading(self.title, '')]
    parts += _x_ticks(across, _TOP - 14, self.height - _BOTTOM, self.x_label, zero=True)
    y = _TOP
    for label, spreads in self.rows:
      parts.append(_row_label(label, y))
      for i, spread in enumerate(spreads):
        parts.append(_box(spread, across, y + 22 + 14 * i))
      y += _box_row(spreads)
    return tag('g', *parts)


@dataclasses.dataclass(frozen=True)
class Bars:
  """Rows of stacked shares of a whole, each with its label above."""

  title: str
  rows: tuple[tuple[str, tuple[tuple[Key, float], ...]], ...]
  x_label: str

  @property
  def height(self) -> float:
    return _TOP + 40.0 * len(self.rows) + _BOTTOM

  def draw(self) -> Markup:
    across = axis.linear([100.0], _EDGE + 8, WIDTH - _EDGE - 12)
    parts = [*_heading(self.title, '')]
    parts += _x_ticks(across, _TOP - 14, self.height - _BOTTOM, self.x_label)
    for i, (label, shares) in enumerate(self.rows):
      y, done = _TOP + 40.0 * i, 0.0
      parts.append(_row_label(label, y))
      for key, share in shares:
        left, right = across.at(done), across.at(done + share)
        done += share
        parts.append(_segment(key, left, right - left, y + 17))
    return tag('g', *parts)


Panel = Lines | Boxes | Bars


def swatch(key: Key) -> Markup:
  """The sample of a series in a legend, 30 x 14 pixels, from the origin."""
  if key.kind == 'box':
    box = tag('rect', class_=_box_class(key), x=2, y=3, width=26, height=9)
    return tag('g', box, class_=f'c{key.colour}')
  if key.kind == 'block':
    return tag('g', _segment(key, 2.0, 26.0, 2.0, 10.0))
  if key.kind == 'reference':
    return tag('path', class_='reference', d='M1 7H29')
  dash = {'stroke_dasharray': DASHES[key.dash]}
  return tag(
    'g',
    tag('path', class_='line', d='M1 7H29', **dash),
    _marker(key, 15.0, 7.0),
    class_=f'c{key.colour}',
  )


def brief(names: Sequence[str]) -> list[str]:
  """Names of which two fit in a row: a long beginning that all share is left out."""
  start = os.path.commonprefix(list(names)) if len(names) > 1 else ''  # noqa: RUF071
  cut = max(start.rfind(mark) for mark in '/-_.') + 1
  kept = [f'…{name[cut:]}' if cut > 8 else name for name in names]
  return [shorten(name, WIDTH / 2 - _EDGE - 2 * _LETTER) for name in kept]


def shorten(label: str, pixels: float) -> str:
  """A label that fits: the middle is left out, as names differ at their ends."""
  letters = int(pixels / _LETTER)
  if len(label) <= letters:
    return label
  return label[: (letters - 1) // 2] + '…' + label[len(label) - letters // 2 :]


def _heading(title: str, label: str) -> list[Markup]:
  shown = shorten(title, (WIDTH - 2 * _EDGE) * 0.9)
  heading = tag('text', shown, class_='title', x=_EDGE, y=16)
  return [heading, tag('text', label, class_='label', x=_EDGE, y=34)]


def _y_ticks(up: Axis) -> list[Markup]:
  parts = []
  for value, text in up.ticks:
    y, right = up.at(value), WIDTH - _RIGHT
    parts.append(tag('path', class_='grid', d=f'M{_LEFT:g} {y:.1f}H{right:g}'))
    parts.append(tag('text', text, class_='tick end', x=_LEFT - 6, y=y + 4))
  return parts


def _x_ticks(
  across: Axis, top: float, bottom: float, label: str, zero: bool = False
) -> list[Markup]:
  parts = []
  for value, text in across.ticks:
    x = across.at(value)
    kind = 'axis' if zero and value == 0 else 'grid'
    parts.append(tag('path', class_=kind, d=f'M{x:.1f} {top:g}V{bottom:g}'))
    parts.append(tag('text', text, class_='tick middle', x=x, y=bottom + 15))
  middle = (across.start + across.stop) / 2
  parts.append(tag('text', label, class_='label middle', x=middle, y=bottom + 33))
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
    *(_marker(series.key, *point) for point in marked),
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


def _marker(key: Key, x: float, y: float) -> Markup:
  kind = 'hollow' if key.dash else 'mark'
  shape = _MARKERS[key.colour]
  return tag('path', class_=kind, d=shape, transform=f'translate({x:.1f} {y:.1f})')


def _box_row(spreads: Sequence[Spread]) -> float:
  return 30.0 + 14.0 * len(spreads)


def _row_label(label: str, y: float) -> Markup:
  shown = shorten(label, WIDTH - 2 * _EDGE)
  full = tag('title', label) if shown != label else ''
  return tag('text', shown, full, class_='row', x=_EDGE, y=y + 12)


def _box(spread: Spread, across: Axis, y: float) -> Markup:
  low, q1, middle, q3, high = map(across.at, spread.five)
  return tag(
    'g',
    tag('path', class_='line', d=f'M{low:.1f} {y:g}H{high:.1f}'),
    tag(
      'rect',
      class_=_box_class(spread.key),
      x=q1,
      y=y - 4.5,
      width=max(q3 - q1, 1.0),
      height=9.0,
    ),
    tag('path', class_='median', d=f'M{middle:.1f} {y - 6:g}V{y + 6:g}'),
    class_=f'c{spread.key.colour}',
  )


def _box_class(key: Key) -> str:
  return 'box open' if key.dash else 'box'


def _segment(
  key: Key, x: float, width: float, y: float, height: float = 14.0
) -> Markup:
  return tag(
    'rect', x=x, y=y, width=width, height=height,
    class_=f'block c{key.colour}', fill_opacity=f'{key.strength:.2f}',
  )  # fmt: skip
