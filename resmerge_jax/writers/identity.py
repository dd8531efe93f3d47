"""What a run is, as plain data: a run may continue or stand for an equal one only."""

from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = 'nothing'


def differences(got: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
  """Every place where two identities differ: 'config method rho: got ..., expected ...'."""
  here, there = dict(_leaves(got)), dict(_leaves(expected))
  return [
    f'{place}: got {here.get(place, _ABSENT)}, expected {there.get(place, _ABSENT)}'
    for place in (*here, *(p for p in there if p not in here))
    if here.get(place, _ABSENT) != there.get(place, _ABSENT)
  ]


def _leaves(value: Any, place: str = '') -> Iterator[tuple[str, Any]]:
  """Place and value of everything that is no mapping, list or tuple."""
  if isinstance(value, Mapping):
    items = list(value.items())
  elif isinstance(value, list | tuple):
    items = [(str(i), item) for i, item in enumerate(value)]
  else:
    yield place, value
    return
  for key, item in items:
    yield from _leaves(item, f'{place} {key}'.lstrip())
