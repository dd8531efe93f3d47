"""Reads records for figures: what is missing or not a number is left out, never filled in."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis

Record = Mapping[str, Any]
# Of one record the numbers that a point of a figure is the mean of; expert None: of all.
Pick = Callable[[Record, int | None], list[float]]

FAMILY_NAMES = {
  'attention': 'Attention',
  'ffn': 'Feed-forward',
  'router': 'Routers',
  'other': 'Other matrices',
  'norm': 'Norms',
  'embed_lm_head': 'Embeddings and LM head',
}


@dataclasses.dataclass(frozen=True)
class Point:
  """Mean and range of some numbers, and how many they were."""

  mean: float
  low: float
  high: float
  count: int


def numbers(value: Any) -> list[float]:
  """The finite numbers of a value or of a list of them."""
  if isinstance(value, list | tuple):
    return [number for item in value for number in numbers(item)]
  if isinstance(value, bool) or not isinstance(value, int | float):
    return []
  return [float(value)] if math.isfinite(value) else []


def field(name: str, scale: float = 1.0) -> Pick:
  """Of a number, of a list with one per expert, or of one with one per pair."""

  def pick(record: Record, expert: int | None) -> list[float]:
    value = record.get(name)
    if expert is not None and isinstance(value, list | tuple):
      value = value[expert] if expert < len(value) else None
    return [scale * number for number in numbers(value)]

  return pick


def energy(k: int) -> Pick:
  """Share of ||D_i||^2 in the first k directions (or all, if fewer), in percent."""

  def pick(record: Record, expert: int | None) -> list[float]:
    of_experts = record.get('energy') or []
    chosen = of_experts if expert is None else of_experts[expert : expert + 1]
    held = [of_one[min(k, len(of_one)) - 1] for of_one in chosen if of_one]
    return [100 * number for number in numbers(held)]

  return pick


def ratio(above: str, below: str) -> Pick:
  """Of two lists with one number per expert; none where the one below is zero."""

  def pick(record: Record, expert: int | None) -> list[float]:
    tops, bottoms = record.get(above) or [], record.get(below) or []
    pairs = list(zip(tops, bottoms, strict=False))
    chosen = pairs if expert is None else pairs[expert : expert + 1]
    return [a / b for a, b in chosen if numbers([a, b]) == [a, b] and b]

  return pick


def point(values: Iterable[float]) -> Point | None:
  held = list(values)
  if not held:
    return None
  return Point(statistics.fmean(held), min(held), max(held), len(held))


def is_matrix(record: Record) -> bool:
  return len(record.get('shape', ())) > 1


def of_groups(groups: Sequence[GroupDiagnosis]) -> list[tuple[int, Record]]:
  """(number of the group, record) of every matrix."""
  return [
    (g, record)
    for g, group in enumerate(groups)
    for record in group.records
    if is_matrix(record)
  ]


def families(groups: Sequence[GroupDiagnosis], picks: Sequence[Pick]) -> list[str]:
  """Families with a number inside the decoder layers, in the order of FAMILY_NAMES."""
  found = {
    record['family']
    for _, record in of_groups(groups)
    if record.get('layer') is not None and any(pick(record, None) for pick in picks)
  }
  return [family for family in FAMILY_NAMES if family in found]


def by_layer(
  group: GroupDiagnosis, family: str, pick: Pick, expert: int | None
) -> dict[int, Point]:
  """The points of a line: one for each decoder layer that has the number."""
  held: dict[int, list[float]] = {}
  for record in group.records:
    layer = record.get('layer')
    if record.get('family') == family and layer is not None and is_matrix(record):
      held.setdefault(layer, []).extend(pick(record, expert))
  points = {layer: point(values) for layer, values in held.items()}
  return {layer: found for layer, found in sorted(points.items()) if found}


def overall(
  group: GroupDiagnosis,
  pick: Pick,
  expert: int | None = None,
  family: str | None = None,
) -> Point | None:
  """Over all matrices of a group (or of a family in it), each counted alike."""
  records = [
    record
    for record in group.records
    if is_matrix(record) and family in (None, record.get('family'))
  ]
  return point([number for record in records for number in pick(record, expert)])


def five(values: Sequence[float]) -> tuple[float, float, float, float, float]:
  """Smallest, quartiles, largest."""
  if len(values) == 1:
    return (values[0],) * 5
  low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
  return min(values), low, middle, high, max(values)
