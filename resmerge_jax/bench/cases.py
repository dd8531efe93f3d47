"""What is measured: the shapes, reductions and rivals of a benchmark, checked at once."""

import dataclasses
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.synthetic import SHAPES, ModelShape, reduction_problems

RIVALS = ('floor', 'mergekit', 'full_svd')
SWEEPS = ('layers', 'n_experts')
MOST_EXPERTS = 8


@dataclasses.dataclass(frozen=True)
class Case:
  """One expert group: a model's shape, perhaps with fewer layers or vocabulary rows."""

  shape: str
  layers: int
  n_experts: int
  vocab_rows: int

  @property
  def model(self) -> ModelShape:
    return dataclasses.replace(
      SHAPES[self.shape], layers=self.layers, vocab=self.vocab_rows
    )

  def __str__(self) -> str:
    reduced = SHAPES[self.shape].vocab != self.vocab_rows
    vocab = f', {self.vocab_rows} vocabulary rows' if reduced else ''
    layers = f'{self.layers} layer{"s" * (self.layers > 1)}'
    return f'{self.shape}: {layers}, {self.n_experts} experts{vocab}'


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Values of one field of a case, in rising order; `key` is of SWEEPS."""

  key: str
  values: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A checked request: one case, or one per value of the sweep."""

  cases: tuple[Case, ...]
  sweep: Sweep | None
  rivals: tuple[str, ...]
  svd_layers: int
  repeat: int


def benchmark(
  shape: str,
  *,
  layers: int | None = None,
  n_experts: int | None = None,
  vocab_rows: int | None = None,
  rivals: Sequence[str] = ('floor', 'mergekit'),
  svd_layers: int = 1,
  repeat: int = 5,
  sweep: str | None = None,
) -> Benchmark:
  """The benchmark that these settings ask for.

  None takes the model's own layers and vocabulary, and three experts.

  Raises:
    InputError: everything that is wrong with them.
  """
  if shape not in SHAPES:
    raise InputError(f'shape {shape!r}: expected one of {", ".join(SHAPES)}')
  model = SHAPES[shape]
  swept, problems = _sweep_of(sweep)
  case = Case(
    shape,
    model.layers if layers is None else layers,
    3 if n_experts is None else n_experts,
    model.vocab if vocab_rows is None else vocab_rows,
  )
  cases = [case]
  if swept is not None:
    if {'layers': layers, 'n_experts': n_experts}[swept.key] is not None:
      problems.append(f'{swept.key}: given and swept over; leave one out')
    cases = [_with(case, swept.key, value) for value in swept.values]
  for each in cases:
    problems += reduction_problems(model, each.layers, each.vocab_rows)
    if not 2 <= each.n_experts <= MOST_EXPERTS:
      problems.append(f'n_experts {each.n_experts}: expected 2 to {MOST_EXPERTS}')
  problems += [
    f'rival {name!r}: expected some of {", ".join(RIVALS)}'
    for name in rivals
    if name not in RIVALS
  ]
  most = min(each.layers for each in cases)
  if not 1 <= svd_layers <= most:
    problems.append(f'svd_layers {svd_layers}: expected 1 to {most}')
  if repeat < 1:
    problems.append(f'repeat {repeat}: expected 1 or more')
  if problems:
    raise InputError('cannot run this benchmark', dict.fromkeys(problems))
  if swept is not None and not is_installed('matplotlib'):
    raise InputError(
      'a sweep is plotted with matplotlib, which is not installed',
      fix="pip install 'resmerge-jax[plots]'",
    )
  chosen = tuple(name for name in RIVALS if name in rivals)
  return Benchmark(tuple(cases), swept, chosen, svd_layers, repeat)


def _with(case: Case, key: str, value: int) -> Case:
  if key == 'layers':
    return dataclasses.replace(case, layers=value)
  return dataclasses.replace(case, n_experts=value)


def _sweep_of(text: str | None) -> tuple[Sweep | None, list[str]]:
  """The sweep that `text` ('layers=2,4') means, and what is wrong with it."""
  if text is None:
    return None, []
  key, _, numbers = text.partition('=')
  values = _integers(numbers.split(','))
  if key not in SWEEPS or values is None or len(set(values)) < 2:
    wanted = ' or '.join(f'{name}=2,4,8' for name in SWEEPS)
    return None, [f'sweep {text!r}: expected {wanted}, at least two numbers']
  return Sweep(key, tuple(sorted(set(values)))), []


def _integers(texts: Iterable[str]) -> list[int] | None:
  try:
    return [int(text) for text in texts]
  except ValueError:
    return None


def is_installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def as_json(case: Case) -> dict[str, Any]:
  return {**dataclasses.asdict(case), 'n_parameters': case.model.n_parameters}
