"""What a compiled program moves between devices, read from its text."""

import dataclasses
import math
import re

_COMPUTATION = re.compile(r'(ENTRY )?(%[\w.-]+) \(.*\{$')
_CALLED = re.compile(r'(body=)?(%[\w.-]+)')
_COLLECTIVE = re.compile(
  r'= (?P<type>.*?) (?P<op>all-reduce|all-gather|all-to-all|collective-permute'
  r'|collective-broadcast|reduce-scatter)(-start)?\((.*channel_id=(?P<channel>\d+))?'
)
_ARRAY = re.compile(r'\b([a-z]+?)(\d*)\[([\d,]*)\]')
# By the loops around it: the solver's steps are a loop in the loop of its cycles.
WHERE = ('once', 'solver cycle', 'solver step')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One operation between devices; `nbytes` is its result on one device."""

  op: str
  nbytes: int
  where: str


def collectives(text: str) -> tuple[Collective, ...]:
  """All collectives of a compiled program, in the order of its text.

  One that runs beside other instructions stands in several fusions, under one channel.
  """
  found: dict[str, Collective] = {}
  bodies = _computations(text)
  depths = _loops_around(bodies)
  for name, lines in bodies.items():
    for line in lines:
      if match := _COLLECTIVE.search(line):
        where = WHERE[min(depths.get(name, 0), 2)]
        collective = Collective(match['op'], _nbytes(match['type']), where)
        found.setdefault(match['channel'] or line, collective)
  return tuple(found.values())


def _nbytes(type_text: str) -> int:
  """Bytes of an array, or of a tuple of arrays."""
  return sum(
    math.prod(int(n) for n in shape.split(',') if n) * (int(bits or 8) // 8)
    for _, bits, shape in _ARRAY.findall(type_text)  # pred has no number
  )


def _computations(text: str) -> dict[str, list[str]]:
  """Lines by the name of the computation they stand in; the entry is called ENTRY."""
  found: dict[str, list[str]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      lines = found.setdefault('ENTRY' if match[1] else match[2], [])
    else:
      lines.append(line)
  return found


def _loops_around(bodies: dict[str, list[str]]) -> dict[str, int]:
  """How many loops run each computation that the entry reaches, the most of any way."""
  depths: dict[str, int] = {}
  to_visit = [('ENTRY', 0)]
  while to_visit:
    name, depth = to_visit.pop()
    if depths.get(name, -1) >= depth:
      continue
    depths[name] = depth
    for line in bodies.get(name, []):
      for is_body, called in _CALLED.findall(line):
        if called in bodies:
          to_visit.append((called, depth + bool(is_body)))
  return depths
