"""What all panels of figures share: keys of a legend, headings, ticks, names that fit.

A panel is WIDTH pixels wide whatever it shows, so that one column of panels fits a
telephone. Nothing here has a colour: classes c0 to c7 do, and `style` gives them one for
light and one for dark pages. What differs in colour differs in marker or dash too.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal

from resmerge_jax.report.axis import Axis
from resmerge_jax.report.markup import Markup, tag

WIDTH = 440
COLOURS = 8
DASHES = (None, '7 4', '2 4')
HEAD, RESIDUAL, WHOLE = 1, 0, 6  # colours: what is seen twice should look alike
TOP, BOTTOM = 46.0, 42.0  # room for a panel's heading, and for its x axis
EDGE = 12.0  # of boxes and bars, which write their labels above
LETTER = 8.0  # pixels per letter of a label, on the large side
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


def swatch(key: Key) -> Markup:
  """The sample of a series in a legend, 30 x 14 pixels, from the origin."""
  if key.kind == 'box':
    box = tag('rect', class_=box_class(key), x=2, y=3, width=26, height=9)
    return tag('g', box, class_=f'c{key.colour}')
  if key.kind == 'block':
    return tag('g', segment(key, 2.0, 26.0, 2.0, 10.0))
  if key.kind == 'reference':
    return tag('path', class_='reference', d='M1 7H29')
  dash = {'stroke_dasharray': DASHES[key.dash]}
  return tag(
    'g',
    tag('path', class_='line', d='M1 7H29', **dash),
    marker(key, 15.0, 7.0),
    class_=f'c{key.colour}',
  )


def brief(names: Sequence[str]) -> list[str]:
  """Names of which two fit in a row: a long beginning that all share is left out."""
  start = os.path.commonprefix(list(names)) if len(names) > 1 else ''  # noqa: RUF071
  cut = max(start.rfind(mark) for mark in '/-_.') + 1
  kept = [f'…{name[cut:]}' if cut > 8 else name for name in names]
  return [shorten(name, WIDTH / 2 - EDGE - 2 * LETTER) for name in kept]


def shorten(label: str, pixels: float) -> str:
  """A label that fits: the middle is left out, as names differ at their ends."""
  letters = int(pixels / LETTER)
  if len(label) <= letters:
    return label
  return label[: (letters - 1) // 2] + '…' + label[len(label) - letters // 2 :]


def heading(title: str, label: str) -> list[Markup]:
  shown = shorten(title, (WIDTH - 2 * EDGE) * 0.9)
  heading = tag('text', shown, class_='title', x=EDGE, y=16)
  return [heading, tag('text', label, class_='label', x=EDGE, y=34)]


def x_ticks(
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


def marker(key: Key, x: float, y: float) -> Markup:
  kind = 'hollow' if key.dash else 'mark'
  shape = _MARKERS[key.colour]
  return tag('path', class_=kind, d=shape, transform=f'translate({x:.1f} {y:.1f})')


def box_class(key: Key) -> str:
  return 'box open' if key.dash else 'box'


def segment(key: Key, x: float, width: float, y: float, height: float = 14.0) -> Markup:
  return tag(
    'rect', x=x, y=y, width=width, height=height,
    class_=f'block c{key.colour}', fill_opacity=f'{key.strength:.2f}',
  )  # fmt: skip
