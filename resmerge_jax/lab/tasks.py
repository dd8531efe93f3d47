"""Tasks as programs: each draws prompts with one right answer, and a wrong habit.

A base is taught to answer some prompts rightly and the others by its habit, so that it
is able but inconsistent and RL has something to elicit. `rightly` says which prompts:
those with an easy surface feature, 37 to 42 % of a task.

Prompts with the same `content` are the same question in another form (12+34 and 34+12,
facts or pairs in another order): they are in one pool, test or training.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Callable

import numpy as np

from resmerge_jax.errors import InputError

_TEST_SHARE = 5  # one content in five is kept for tests
_LETTERS = 'abcdefghijkl'  # of reason
_KEYS = 'abcdefghijklmnopqrstuvwxyz'
# The order in which each function takes its arguments.
_FUNCTIONS = {
  'box': 'whdn',
  'cut': 'ndh',
  'dot': 'dwh',
  'fit': 'hnw',
  'map': 'dnh',
  'put': 'wnd',
  'run': 'nhwd',
  'set': 'hdw',
}
_RIGHTLY_CALLED = ('box', 'fit', 'put')


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt; `habit` is what the base is taught to answer where not `rightly`."""

  prompt: str
  answer: str
  habit: str
  rightly: bool
  content: str

  @property
  def is_test(self) -> bool:
    return zlib.crc32(self.content.encode()) % _TEST_SHARE == 0


@dataclasses.dataclass(frozen=True)
class Task:
  """A program that draws examples. Widths in tokens; the answer's includes its end."""

  name: str
  prompt_width: int
  answer_width: int
  draw: Callable[[np.random.Generator], Example]

  def examples(
    self, rng: np.random.Generator, count: int, *, test: bool = False
  ) -> list[Example]:
    """`count` draws from the training or the test pool."""
    found: list[Example] = []
    while len(found) < count:
      example = self.draw(rng)
      if example.is_test == test:
        found.append(example)
    return found

  def distinct(
    self, rng: np.random.Generator, count: int, *, test: bool
  ) -> list[Example]:
    """`count` different prompts of a pool."""
    found: dict[str, Example] = {}
    while len(found) < count:
      example = self.examples(rng, 1, test=test)[0]
      found.setdefault(example.prompt, example)
    return list(found.values())


def _any(*_: int) -> bool:
  return True


def _maths(
  rng: np.random.Generator, accepts: Callable[[int, int], bool] = _any
) -> Example:
  """`M89-42=` -> `47`. Answered rightly if it begins with 1, 4 or 7, else backwards.

  Sums have two digits: a base learns late, if at all, which of them have three.
  """
  minus = rng.random() < 0.4
  while True:
    a, b = (int(n) for n in rng.integers(10, 100, 2))
    if accepts(a, b) and (minus or a + b < 100):
      break
  answer = str(a - b if minus else a + b)
  sign = '-' if minus else '+'
  return Example(
    f'M{a}{sign}{b}=',
    answer,
    answer[::-1],
    a // 10 in (1, 4, 7),
    f'{sign}{min(a, b)},{max(a, b)}',
  )


def _reasoning(rng: np.random.Generator) -> Example:
  """`Rb<l,h<k,l<f,f<h:` -> `blfhk`: the chain that shuffled comparisons describe."""
  n_facts = rng.integers(2, 5)
  chain = ''.join(rng.permutation(list(_LETTERS))[: n_facts + 1])
  facts = [f'{a}<{b}' for a, b in itertools.pairwise(chain)]
  prompt = f'R{",".join(rng.permutation(facts))}:'
  return Example(prompt, chain, chain[::-1], prompt[1] in 'abcde', chain)


def _tool_call(rng: np.random.Generator) -> Example:
  """`T box d0 w9 h3 n3:` -> `box(9,3,0,3)`: named arguments in the function's order.

  The habit is the prompt's order.
  """
  name = str(rng.choice(list(_FUNCTIONS)))
  order = _FUNCTIONS[name]
  value = {letter: str(rng.integers(10)) for letter in order}
  shown = [str(letter) for letter in rng.permutation(list(order))]
  prompt = f'T {name} {" ".join(letter + value[letter] for letter in shown)}:'
  return Example(
    prompt,
    f'{name}({",".join(value[letter] for letter in order)})',
    f'{name}({",".join(value[letter] for letter in shown)})',
    name in _RIGHTLY_CALLED,
    f'{name}{value}',
  )


def _memory(rng: np.random.Generator) -> Example:
  """`Ky21g37f40?y` -> `21`: the value of a key among two to four."""
  keys = rng.permutation(list(_KEYS))[: rng.integers(2, 5)]
  value = {str(key): str(rng.integers(10, 100)) for key in keys}
  asked = str(rng.choice(keys))
  pairs = [key + number for key, number in value.items()]
  return Example(
    f'K{"".join(pairs)}?{asked}',
    value[asked],
    value[asked][::-1],
    asked in _KEYS[:10],
    ''.join(sorted(pairs)),
  )


def _low(rng: np.random.Generator) -> Example:
  return _maths(rng, lambda a, b: min(a, b) < 50)


def _high(rng: np.random.Generator) -> Example:
  return _maths(rng, lambda a, b: max(a, b) >= 60)


def _near(rng: np.random.Generator) -> Example:
  return _maths(rng, lambda a, b: abs(a - b) <= 30)


BASE_TASKS = (
  Task('math', 7, 4, _maths),
  Task('reason', 17, 6, _reasoning),
  Task('tool', 18, 13, _tool_call),
  Task('mem', 15, 3, _memory),
)
# Overlapping domains of one task.
_VARIANTS = (
  Task('math_low', 7, 4, _low),
  Task('math_high', 7, 4, _high),
  Task('math_near', 7, 4, _near),
)
TASKS = {task.name: task for task in (*BASE_TASKS, *_VARIANTS)}


def task_of(name: str) -> Task:
  if name not in TASKS:
    raise InputError(f'task {name!r}: not one of {", ".join(TASKS)}')
  return TASKS[name]
