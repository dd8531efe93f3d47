"""Panels of rows, each with its label above: spreads as boxes, shares as bars."""

import dataclasses
from collections.abc import Sequence

from resmerge_jax.report import axis
from resmerge_jax.report.axis import Axis
from resmerge_jax.report.chart import (
  BOTTOM,
  EDGE,
  TOP,
  WIDTH,
  Key,
  box_class,
  heading,
  segment,
  shorten,
  x_ticks,
)
from resmerge_jax.report.markup import Markup, tag


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
    return TOP + sum(_box_row(spreads) for _, spreads in self.rows) + BOTTOM

  def draw(self) -> Markup:
    values = [v for _, row in self.rows for s in row for v in s.five]
    across = axis.linear([*values, *self.held], EDGE + 8, WIDTH - EDGE - 8)
    parts = [*heading(self.title, '')]
    parts += x_ticks(across, TOP - 14, self.height - BOTTOM, self.x_label, zero=True)
    y = TOP
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
    return TOP + 40.0 * len(self.rows) + BOTTOM

  def draw(self) -> Markup:
    across = axis.linear([100.0], EDGE + 8, WIDTH - EDGE - 12)
    parts = [*heading(self.title, '')]
    parts += x_ticks(across, TOP - 14, self.height - BOTTOM, self.x_label)
    for i, (label, shares) in enumerate(self.rows):
      y, done = TOP + 40.0 * i, 0.0
      parts.append(_row_label(label, y))
      for key, share in shares:
        left, right = across.at(done), across.at(done + share)
        done += share
        parts.append(segment(key, left, right - left, y + 17))
    return tag('g', *parts)


def _box_row(spreads: Sequence[Spread]) -> float:
  return 30.0 + 14.0 * len(spreads)


def _row_label(label: str, y: float) -> Markup:
  shown = shorten(label, WIDTH - 2 * EDGE)
  full = tag('title', label) if shown != label else ''
  return tag('text', shown, full, class_='row', x=EDGE, y=y + 12)


def _box(spread: Spread, across: Axis, y: float) -> Markup:
  low, q1, middle, q3, high = map(across.at, spread.five)
  return tag(
    'g',
    tag('path', class_='line', d=f'M{low:.1f} {y:g}H{high:.1f}'),
    tag(
      'rect',
      class_=box_class(spread.key),
      x=q1,
      y=y - 4.5,
      width=max(q3 - q1, 1.0),
      height=9.0,
    ),
    tag('path', class_='median', d=f'M{middle:.1f} {y - 6:g}V{y + 6:g}'),
    class_=f'c{spread.key.colour}',
  )
