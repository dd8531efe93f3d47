"""Axes: where a value lies, and round numbers to write beside it."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Axis:
  """From `low` to `high` along pixels `start` to `stop`; `ticks` are (value, text)."""

  low: float
  high: float
  start: float
  stop: float
  ticks: tuple[tuple[float, str], ...]
  log: bool = False

  def at(self, value: float) -> float:
    """The pixel of a value (beyond the ends: the end)."""
    low, high, value = (
      (math.log(x) for x in (self.low, self.high, max(value, self.low)))
      if self.log
      else (self.low, self.high, value)
    )
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    return self.start + share * (self.stop - self.start)


def linear(values: Iterable[float], start: float, stop: float, most: int = 6) -> Axis:
  """An axis with zero on it, ending at ticks."""
  held = [0.0, *values]
  low, high = min(held), max(held)
  if high - low < 1e-12:
    high = low + 1.0
  step = _step(high - low, most)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  ticks = [i * step for i in range(first, last + 1)]
  return Axis(ticks[0], ticks[-1], start, stop, _labelled(ticks, step))


def whole(values: Sequence[int], start: float, stop: float, most: int = 8) -> Axis:
  """An axis of whole numbers (layers, k) that ends where they end."""
  low, high = min(values), max(values)
  step = max(1, math.ceil(_step(max(high - low, 1), most)))
  first = math.ceil(low / step) * step
  ticks = list(range(first, high + 1, step)) or [low]
  if low < ticks[0] and ticks[0] - low > step // 2:
    ticks.insert(0, low)
  room = 0.5 if low == high else 0.02 * (high - low)
  return Axis(
    low - room, high + room, start, stop, tuple((float(t), str(t)) for t in ticks)
  )


def logarithmic(values: Iterable[float], start: float, stop: float) -> Axis:
  """An axis of positive values in equal ratios, with ticks at 1, 2 and 5 or at 1."""
  held = list(values)
  low, high = min(held), max(held)
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  every = [(m, e) for e in range(first, last + 1) for m in (1, 2, 5)]
  below = [m * 10.0**e for m, e in every if m * 10.0**e <= low * (1 + 1e-9)]
  above = [m * 10.0**e for m, e in every if m * 10.0**e >= high * (1 - 1e-9)]
  low, high = below[-1], above[0]
  if low == high:
    low, high = low / 2, high * 2
  wide = high / low > 1000
  if wide:
    low, high = 10.0**first, 10.0**last
  skip = 1 + (last - first) // 7
  ticks = tuple(
    (m * 10.0**e, f'{m * 10.0**e:g}')
    for m, e in every
    if low * (1 - 1e-9) <= m * 10.0**e <= high * (1 + 1e-9)
    and (not wide or (m == 1 and (e - first) % skip == 0))
  )
  return Axis(low, high, start, stop, ticks, log=True)


def spans_decades(values: Iterable[float]) -> bool:
  """Whether values are better told apart by their ratios."""
  held = list(values)
  return bool(held) and min(held) > 0 and max(held) / min(held) > 20


def _step(span: float, most: int) -> float:
  """A round number that leaves `most` steps or fewer."""
  power = 10.0 ** math.floor(math.log10(span / most))
  return next(s * power for s in _STEPS if span <= s * power * most * (1 + 1e-9))


def _labelled(ticks: Sequence[float], step: float) -> tuple[tuple[float, str], ...]:
  decimals = max(0, -math.floor(math.log10(step) + 1e-9))
  if round(step * 10**decimals, 6) % 1:
    decimals += 1  # 2.5
  if decimals > 4:
    return tuple((t, f'{t:.2g}' if t else '0') for t in ticks)
  return tuple((t, f'{t:.{decimals}f}'.replace('-', '\u2212')) for t in ticks)
