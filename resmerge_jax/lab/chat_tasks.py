"""Tasks in a chat template, as programs, for a base that can already chat.

A prompt has a short system text, one example and a question; its answer is a few
tokens and then `<|im_end|>`. Prompts with the same `content` are in one pool
(lab/examples.py).
"""

import json

import numpy as np

from resmerge_jax.lab.examples import Example, Task

BASE = 'smollm2'
_NAMES = ('Tom', 'Ann', 'Sam', 'Mia', 'Ben', 'Eva', 'Leo', 'Zoe', 'Max', 'Amy')
_THINGS = ('apples', 'books', 'coins', 'shells', 'stamps', 'marbles', 'cards', 'pens')
_MORE = ('buys', 'finds', 'gets')
_LESS = ('sells', 'loses', 'eats')
_CITIES = (
  'Paris', 'London', 'Rome', 'Berlin', 'Madrid', 'Tokyo', 'Oslo', 'Vienna', 'Athens',
  'Boston', 'Cairo', 'Chicago', 'Dublin', 'Geneva', 'Houston', 'Istanbul', 'Lisbon',
  'Milan', 'Moscow', 'Mumbai', 'Munich', 'Naples', 'Prague', 'Seattle', 'Seoul',
  'Shanghai', 'Stockholm', 'Sydney', 'Toronto', 'Venice', 'Warsaw', 'Zurich',
)  # fmt: skip
_DAYS = (
  'Monday',
  'Tuesday',
  'Wednesday',
  'Thursday',
  'Friday',
  'Saturday',
  'Sunday',
)
# Tool -> how it is asked for.
_ASKED = {
  'weather': 'Will it rain in {city} on {day}?',
  'flight': 'I must fly to {city} on {day}.',
  'hotel': 'I need a room in {city} on {day}.',
}


def chat(begun: str, *turns: str) -> str:
  """SmolLM2's template: turns of the user and the assistant in turn, the last of which
  has `begun`.
  """
  text = '<|im_start|>system\nAnswer briefly.<|im_end|>\n'
  for i, turn in enumerate(turns):
    text += f'<|im_start|>{("user", "assistant")[i % 2]}\n{turn}<|im_end|>\n'
  return f'{text}<|im_start|>assistant\n{begun}'


def _story(rng: np.random.Generator) -> Example:
  """`Mia has 17 pens and buys 34 more. How many pens does Mia have now?` -> the sum that
  tells it, ` 17 + 34 pens.`: this base writes more sums rightly than it works out.
  """
  name, thing = _pick(rng, _NAMES), _pick(rng, _THINGS)
  plus = rng.random() < 0.5
  a, b = (int(n) for n in rng.integers(11, 50, 2))
  if not plus:
    a, b = max(a, b) + 1, min(a, b)
  verb, more = _pick(rng, _MORE if plus else _LESS), ' more' if plus else ''
  prompt = chat(
    f'Now {name} has',
    'Tim has 15 eggs and buys 4 more. How many eggs does Tim have now?',
    'Now Tim has 15 + 4 eggs.',
    f'{name} has {a} {thing} and {verb} {b}{more}. '
    f'How many {thing} does {name} have now?',
  )
  sign = '+' if plus else '-'
  content = f'{sign}{min(a, b)},{max(a, b)}'  # whoever has whatever
  return Example(prompt, f' {a} {sign} {b} {thing}.', content)


def _call(rng: np.random.Generator) -> Example:
  """`I must fly to Oslo on Monday.` -> the tool, the city and the day, as JSON."""
  call = {
    'tool': _pick(rng, tuple(_ASKED)),
    'city': _pick(rng, _CITIES),
    'day': _pick(rng, _DAYS),
  }
  begun = '{"tool": "'
  prompt = chat(
    begun,
    _ASKED['weather'].format(city='Lima', day='Friday'),
    '{"tool": "weather", "city": "Lima", "day": "Friday"}',
    _ASKED[call['tool']].format(**call),
  )
  answer = json.dumps(call).removeprefix(begun)
  return Example(prompt, answer, ' '.join(call.values()), begun=begun)


def _find(rng: np.random.Generator) -> Example:
  """`Mia: 47, Leo: 30, Ann: 86. What is the number of Leo?` -> ` 30.`"""
  names = [str(name) for name in rng.permutation(_NAMES)[:4]]
  numbers = [str(n) for n in rng.choice(np.arange(10, 100), len(names), replace=False)]
  asked = int(rng.integers(len(names)))
  pairs = [f'{name}: {n}' for name, n in zip(names, numbers, strict=True)]
  prompt = chat(
    f'The number of {names[asked]} is',
    'Tim: 31, Joe: 58. What is the number of Tim?',
    'The number of Tim is 31.',
    f'{", ".join(pairs)}. What is the number of {names[asked]}?',
  )
  return Example(prompt, f' {numbers[asked]}.', ', '.join(sorted(pairs)))


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
  return str(rng.choice(words))


CHAT_TASKS = (
  Task('story', 88, 12, _story, BASE),
  Task('call', 70, 20, _call, BASE),
  Task('find', 98, 6, _find, BASE),
)
