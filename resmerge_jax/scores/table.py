"""The arithmetic of the paper's tables, in percent.

A category's average is the mean of its benchmarks, the overall average the unweighted
mean of the categories, both of unrounded numbers. An average with a missing part is
missing.
"""

import dataclasses
import decimal
from collections.abc import Mapping

from resmerge_jax.errors import InputError
from resmerge_jax.scores.categories import OVERALL, Categories
from resmerge_jax.scores.found import Found
from resmerge_jax.scores.gather import Scores

DECIMALS = 2  # as printed; ranks are of printed numbers


@dataclasses.dataclass(frozen=True)
class Row:
  """A model: percent by column (benchmarks, categories, Overall); None is missing."""

  model: str
  percent: dict[str, float | None]
  difference: float | None  # of Overall, to the baseline
  rank: int | None  # by Overall; equal numbers share the best of their ranks

  def missing(self, categories: Categories) -> list[str]:
    """Benchmarks without a score."""
    names = [b.name for row in categories.values() for b in row]
    return [name for name in names if self.percent[name] is None]


@dataclasses.dataclass(frozen=True)
class Printed:
  """An average that a file states, beside that of its benchmarks."""

  found: Found
  computed: float | None
  decimals: int

  @property
  def verdict(self) -> str:
    """same, rounding (of the benchmarks may explain it), differs, or unknown."""
    if self.computed is None:
      return 'unknown'
    unit = 10.0**-self.decimals
    off = abs(self.computed - self.found.percent) - 1e-9  # of binary fractions
    return 'same' if off <= unit / 2 else 'rounding' if off <= unit else 'differs'


def make_rows(
  scores: Scores, categories: Categories, baseline: str | None = None
) -> list[Row]:
  """A row per model, in the order of `scores`.

  Raises:
    InputError: the baseline is no model, or has no overall average.
  """
  percents = {model: _averaged(row, categories) for model, row in scores.items()}
  reference = _reference(percents, baseline, categories)
  printed = {
    model: None if (overall := row[OVERALL]) is None else rounded(overall)
    for model, row in percents.items()
  }
  numbers = [number for number in printed.values() if number is not None]
  rows = []
  for model, percent in percents.items():
    overall, number = percent[OVERALL], printed[model]
    rows.append(
      Row(
        model,
        percent,
        None if None in (overall, reference) else overall - reference,  # type: ignore[operator]
        None if number is None else 1 + sum(other > number for other in numbers),
      )
    )
  return rows


def rounded(number: float, decimals: int = DECIMALS) -> decimal.Decimal:
  """As by hand, halves away from zero: 81.515 is 81.52, though its binary is below."""
  exact = decimal.Decimal(repr(round(number, 9)))  # float64 is sure of nine decimals
  unit = decimal.Decimal(1).scaleb(-decimals)
  return exact.quantize(unit, decimal.ROUND_HALF_UP) + 0  # no minus before a zero


def check_printed(
  scores: Scores, rows: list[Row], categories: Categories
) -> list[Printed]:
  """Averages that the files state, each beside what the benchmarks give."""
  columns = [*categories, OVERALL]
  stated = [
    (row, scores[row.model][column])
    for row in rows
    for column in columns
    if column in scores[row.model]
  ]
  decimals = max((len(f.text.partition('.')[2]) for _, f in stated), default=0)
  return [Printed(found, row.percent[found.column], decimals) for row, found in stated]


def _averaged(
  found: Mapping[str, Found], categories: Categories
) -> dict[str, float | None]:
  percent: dict[str, float | None] = {}
  for category, benchmarks in categories.items():
    names = [benchmark.name for benchmark in benchmarks]
    percent |= {n: found[n].percent if n in found else None for n in names}
    percent[category] = _mean([percent[name] for name in names])
  percent[OVERALL] = _mean([percent[category] for category in categories])
  return percent


def _mean(numbers: list[float | None]) -> float | None:
  there = [number for number in numbers if number is not None]
  return sum(there) / len(numbers) if len(there) == len(numbers) else None


def _reference(
  percents: Mapping[str, Mapping[str, float | None]],
  baseline: str | None,
  categories: Categories,
) -> float | None:
  if baseline is None:
    return None
  if baseline not in percents:
    raise InputError(
      f'--baseline={baseline}: no such model', fix=f'use one of {", ".join(percents)}'
    )
  row = percents[baseline]
  if row[OVERALL] is None:
    names = [b.name for benchmarks in categories.values() for b in benchmarks]
    raise InputError(
      f'--baseline={baseline}: has no overall average; missing',
      [name for name in names if row[name] is None],
      fix='evaluate it on these, or give another baseline',
    )
  return row[OVERALL]
