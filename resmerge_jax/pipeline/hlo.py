"""What a compiled program moves between devices, read from its text."""

import dataclasses
import math
import re

_COLLECTIVE = re.compile(
  r'= (?P<type>.*?) (?P<op>all-reduce|all-gather|all-to-all|collective-permute'
  r'|collective-broadcast|reduce-scatter)(-start)?\('
)
_NAME = re.compile(r'op_name="([^"]*)"')
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
  """All collectives of a compiled program's text, in its order."""
  found = []
  for line in text.splitlines():
    if match := _COLLECTIVE.search(line):
      name = _NAME.search(line)
      depth = name[1].count('while/body') if name else 0
      nbytes = sum(
        math.prod(int(n) for n in shape.split(',') if n) * (int(bits or 8) // 8)
        for _, bits, shape in _ARRAY.findall(match['type'])  # pred has no number
      )
      found.append(Collective(match['op'], nbytes, WHERE[min(depth, 2)]))
  return tuple(found)
