"""Values of mergekit's parameters: numbers, gradients over depth, and filters by name.

A list of numbers is spread over the layers, its entries at equal distances; a list of
`{filter, value}` gives the value of the first filter that is part of the tensor's name.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from resmerge_jax.errors import InputError

Kind = Literal['number', 'integer', 'flag']
Scalar = bool | int | float
EXPECTED = {
  'number': 'a finite number',
  'integer': 'a whole number',
  'flag': 'true or false',
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """What one parameter is set to at one place of the file.

  `branches`: pairs of a filter (None: every tensor) and its values; several values are
  a gradient.
  """

  kind: Kind
  branches: tuple[tuple[str | None, tuple[Scalar, ...]], ...]

  @property
  def filters(self) -> tuple[str, ...]:
    return tuple(text for text, _ in self.branches if text is not None)

  @property
  def has_gradient(self) -> bool:
    return any(len(set(values)) > 1 for _, values in self.branches)

  def values_for(self, matched: frozenset[str]) -> tuple[Scalar, ...] | None:
    """The values for a name that holds these filters; None: no branch is for it."""
    for text, values in self.branches:
      if text is None or text in matched:
        return values
    return None


def at_depth(values: tuple[Scalar, ...], t: float) -> Scalar:
  """The value at depth t from 0 to 1: interpolated, or of flags the one before."""
  place = t * (len(values) - 1)
  before = int(place)
  after = min(before + 1, len(values) - 1)
  if isinstance(values[before], bool) or values[before] == values[after]:
    return values[before]
  return (1 - (place - before)) * values[before] + (place - before) * values[after]


def read_setting(raw: Any, where: str, kind: Kind) -> Setting:
  """The setting that `raw` of the file stands for; `where` names it in messages.

  Raises:
    InputError: a value of another kind, an empty list, or an unknown field of a filter.
  """
  conditions = [raw] if isinstance(raw, Mapping) else raw
  if isinstance(conditions, list) and any(isinstance(c, Mapping) for c in conditions):
    branches = [
      _branch(condition, f'{where}[{i}]', kind)
      for i, condition in enumerate(conditions)
    ]
    return Setting(kind, tuple(branches))
  return Setting(kind, ((None, _values(raw, where, kind)),))


def _branch(
  condition: Any, where: str, kind: Kind
) -> tuple[str | None, tuple[Scalar, ...]]:
  if not isinstance(condition, Mapping) or not (
    {'value'} <= set(condition) <= {'filter', 'value'}
  ):
    raise InputError(
      f'{where}: got {condition!r}, expected the keys filter and value',
      fix='write - {filter: self_attn, value: 0.5}; the last one without a filter',
    )
  text = condition.get('filter')
  if text is not None and not isinstance(text, str):
    raise InputError(f'{where}.filter: got {text!r}, expected a part of tensor names')
  everything = text in (None, '', '*')
  return None if everything else text, _values(
    condition['value'], f'{where}.value', kind
  )


def _values(raw: Any, where: str, kind: Kind) -> tuple[Scalar, ...]:
  many = isinstance(raw, Sequence) and not isinstance(raw, str)
  if many and not raw:
    raise InputError(f'{where}: got an empty list', fix='give a value')
  return tuple(_scalar(item, where, kind) for item in (raw if many else [raw]))


def _scalar(raw: Any, where: str, kind: Kind) -> Scalar:
  """mergekit takes 1e-5, which YAML reads as text, and 1 and 0 for flags."""
  try:
    if kind == 'flag' and raw in (0, 1):
      return bool(raw)
    if kind != 'flag' and not isinstance(raw, bool):
      number = float(raw)
      if kind == 'number' and math.isfinite(number):
        return number
      if kind == 'integer' and number.is_integer():
        return int(number)
  except (TypeError, ValueError, OverflowError):
    pass
  raise InputError(f'{where}: got {raw!r}, expected {EXPECTED[kind]}')
