"""Medians and ratios of what was measured. Ratios are taken round by round."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from resmerge_jax.bench.rounds import Result, Sample

Round = Mapping[str, Sample]


@dataclasses.dataclass(frozen=True)
class Spread:
  """Median, smallest and largest of some numbers."""

  median: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One line of the comparisons: `unit` is 'x' for a ratio, 's' for a difference."""

  label: str
  unit: str
  spread: Spread


@dataclasses.dataclass(frozen=True)
class Line:
  """A least-squares line y = intercept + slope x; `r2` is 1 where it fits exactly."""

  slope: float
  intercept: float
  r2: float


def spread(values: Iterable[float]) -> Spread:
  found = list(values)
  return Spread(statistics.median(found), min(found), max(found))


def names(result: Result) -> list[str]:
  """The measured processes, in their order."""
  return list(dict.fromkeys(sample.name for sample in result.samples))


def seconds(result: Result, name: str) -> Spread:
  return spread(s.seconds for s in result.samples if s.name == name)


def cpu(result: Result, name: str) -> Spread:
  return spread(s.cpu for s in result.samples if s.name == name)


def peak(result: Result, name: str, kind: str) -> int | None:
  """Largest memory of all rounds, bytes; `kind` is 'anonymous' or 'resident'."""
  found = [getattr(s, kind) for s in result.samples if s.name == name]
  known = [value for value in found if value is not None]
  return max(known) if known else None


def busy_with_others(result: Result) -> float | None:
  """Cores that something else kept busy, on average; None where it is not known."""
  known = [(s.others, s.seconds) for s in result.samples if s.others is not None]
  whole = sum(seconds for _, seconds in known)
  return sum(o * seconds for o, seconds in known) / whole if whole else None


def detail(result: Result, name: str, key: str) -> float | None:
  """Median of a number that the process told; None where it told none."""
  found = [s.details[key] for s in result.samples if s.name == name if key in s.details]
  return statistics.median(found) if found else None


def comparisons(result: Result) -> list[Comparison]:
  """Ours against what was measured beside it, as far as it was."""
  each = _Rounds(result)
  layers, n_svd = result.case.layers, result.svd_layers
  return each.of(
    ('ours / mergekit', 'x', lambda r: _s(r, 'ours') / _s(r, 'mergekit')),
    ('ours / (floor + import jax)', 'x', lambda r: _s(r, 'ours') / _least(r)),
    (
      'ours / (floor without its fsync + import jax)',
      'x',
      lambda r: _s(r, 'ours') / (_least(r) - r['floor'].details['sync']),
    ),
    ('ours, first run - later run', 's', lambda r: _s(r, 'ours_first') - _s(r, 'ours')),
    (
      'full SVD / ours, per layer, whole processes',
      'x',
      lambda r: (_s(r, 'full_svd') / n_svd) / (_s(r, 'ours') / layers),
    ),
    (
      'full SVD / ours, per layer, without start, compiling and commit',
      'x',
      lambda r: (
        (r['full_svd'].details['total'] / n_svd) / (_merging(r['ours']) / layers)
      ),
    ),
  )


def to_ours(result: Result, name: str) -> Spread:
  """Seconds of a process over those of ours in the same round."""
  found = _Rounds(result).of((name, 'x', lambda r: _s(r, name) / _s(r, 'ours')))
  return found[0].spread


def _s(measured: Round, name: str) -> float:
  return measured[name].seconds


def _merging(ours: Sample) -> float:
  """Seconds of merge() up to the commit but for the wait for compiled programs."""
  return ours.details['until_commit'] - ours.details['compile_wait']


def _least(measured: Round) -> float:
  return _s(measured, 'floor') + _s(measured, 'import_jax')


class _Rounds:
  """The samples of each round, by name."""

  def __init__(self, result: Result):
    rounds: dict[int, dict[str, Sample]] = {}
    for sample in result.samples:
      rounds.setdefault(sample.round, {})[sample.name] = sample
    self._rounds = list(rounds.values())

  def of(self, *wanted: tuple[str, str, Callable[[Round], float]]) -> list[Comparison]:
    """Spreads over the rounds in which all that a formula needs was measured."""
    found = []
    for label, unit, formula in wanted:
      values = []
      for measured in self._rounds:
        try:
          values.append(formula(measured))
        except KeyError:  # a process that this round lacks
          continue
      if values:
        found.append(Comparison(label, unit, spread(values)))
    return found


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
  """The least-squares line through two or more points with different x."""
  slope, intercept = statistics.linear_regression(x, y)
  middle = statistics.fmean(y)
  missed = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
  total = sum((b - middle) ** 2 for b in y)
  return Line(slope, intercept, 1 - missed / total if total else 1.0)
