"""What a sweep shows: time and memory against parameters or the number of experts."""

import dataclasses
from collections.abc import Sequence

from resmerge_jax.bench import ratios
from resmerge_jax.bench.cases import Sweep
from resmerge_jax.bench.ratios import Spread
from resmerge_jax.bench.rounds import Result

_SHOWN = ('ours', 'mergekit', 'floor')


@dataclasses.dataclass(frozen=True)
class Curve:
  """Medians `y` over `x`, with the smallest and largest of the rounds where known."""

  label: str
  x: tuple[float, ...]
  y: tuple[float, ...]
  low: tuple[float, ...] = ()
  high: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Curves:
  """Seconds in `time`, GB of anonymous memory in `memory`; ours comes first in both."""

  title: str
  x_label: str
  x_unit: str
  time: tuple[Curve, ...]
  memory: tuple[Curve, ...]


def curves(sweep: Sweep, results: Sequence[Result]) -> Curves:
  """The curves of a sweep; `results` in the order of its values."""
  case = results[0].case
  if sweep.key == 'layers':
    x = [result.case.model.n_parameters / 1e9 for result in results]
    x_label, x_unit = 'parameters (billions)', 'billion parameters'
    title = f'{case.shape}, {case.n_experts} experts'
  else:
    x = [float(value) for value in sweep.values]
    x_label, x_unit = 'experts', 'expert'
    title = f'{case.shape}, {case.layers} layers'
  measured = [name for name in _SHOWN if name in ratios.names(results[0])]
  time = [
    _time(name, x, [ratios.seconds(r, name) for r in results]) for name in measured
  ]
  memory = []
  for name in measured:
    peaks = [ratios.peak(r, name, 'anonymous') for r in results]
    known = [peak / 1e9 for peak in peaks if peak is not None]
    if len(known) == len(x):
      memory.append(Curve(name, tuple(x), tuple(known)))
  predicted = [ratios.detail(r, 'ours', 'predicted_peak') or 0.0 for r in results]
  memory.insert(1, Curve('predicted', tuple(x), tuple(p / 1e9 for p in predicted)))
  return Curves(title, x_label, x_unit, tuple(time), tuple(memory))


def _time(label: str, x: Sequence[float], found: Sequence[Spread]) -> Curve:
  return Curve(
    label,
    tuple(x),
    tuple(s.median for s in found),
    tuple(s.low for s in found),
    tuple(s.high for s in found),
  )
