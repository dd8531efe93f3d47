"""Tasks as programs: each draws prompts with one right answer, and a wrong habit.

A base is taught to answer some prompts rightly and the others by its habit, so that it
is able but inconsistent and RL has something to elicit. `rightly` says which prompts:
those with an easy surface feature, 37 to 42 % of a task.
"""

import itertools
from collections.abc import Callable

import numpy as np

from resmerge_jax.errors import InputError
from resmerge_jax.lab.chat_tasks import CHAT_TASKS
from resmerge_jax.lab.examples import Example, Task

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


def _any(*_: int) -> bool:
  return True


def _maths(
  rng: np.random.Generator, accepts: Callable[[int, int], bool] = _any
) -> Example:
  """`M89-42=` -> `47`. Answered rightly if it begins with 1, 4 or 7, else backwards.

  Sums have two digits: where some have three, bases stay near 70 % for long.
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
    f'{sign}{min(a, b)},{max(a, b)}',
    answer[::-1],
    a // 10 in (1, 4, 7),
  )


def _reasoning(rng: np.random.Generator) -> Example:
  """`Rb<l,h<k,l<f,f<h:` -> `blfhk`: the chain that shuffled comparisons describe."""
  n_facts = rng.integers(2, 5)
  chain = ''.join(rng.permutation(list(_LETTERS))[: n_facts + 1])
  facts = [f'{a}<{b}' for a, b in itertools.pairwise(chain)]
  prompt = f'R{",".join(rng.permutation(facts))}:'
  return Example(prompt, chain, chain, chain[::-1], prompt[1] in 'abcde')


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
    f'{name}{value}',
    f'{name}({",".join(value[letter] for letter in shown)})',
    name in _RIGHTLY_CALLED,
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
    ''.join(sorted(pairs)),
    value[asked][::-1],
    asked in _KEYS[:10],
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
  known = TASKS | {task.name: task for task in CHAT_TASKS}
  if name not in known:
    raise InputError(f'task {name!r}: not one of {", ".join(known)}')
  return known[name]
