"""Chat tasks: right answers, pools by content, and what counts as an answer."""

import json
import re

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.lab import tokenizer
from resmerge_jax.lab.answers import matches
from resmerge_jax.lab.chat_tasks import CHAT_TASKS
from resmerge_jax.lab.recipe import group_recipe
from resmerge_jax.lab.tasks import task_of
from resmerge_jax.lab.tokenizer import Encoding

TOOLS = {'rain': 'weather', 'fly': 'flight', 'room': 'hotel'}


def question(prompt):
  return prompt.split('<|im_start|>user\n')[-1].split('<|im_end|>')[0]


def solve(name, prompt):
  """The right end of the answer, read from the question's text."""
  asked, begun = question(prompt), prompt.rpartition('assistant\n')[2]
  if name == 'story':
    a, verb, b = re.search(r'has (\d+) \w+ and (\w+) (\d+)', asked).groups()
    sign = '+' if verb in ('buys', 'finds', 'gets') else '-'
    assert begun == f'Now {asked.split()[0]} has'
    return f' {a} {sign} {b} {re.search("How many ([a-z]+)", asked)[1]}.'
  if name == 'find':
    *_, who = re.findall('[A-Z][a-z]+', asked)
    assert begun == f'The number of {who} is'
    return f' {re.search(f"{who}: ([0-9]+)", asked)[1]}.'
  city, day = re.search(r'(?:in|to) (\w+) on (\w+)[.?]', asked).groups()
  (tool,) = {tool for word, tool in TOOLS.items() if word in asked}
  return json.dumps({'tool': tool, 'city': city, 'day': day}).removeprefix(begun)


@pytest.mark.parametrize('task', CHAT_TASKS, ids=[task.name for task in CHAT_TASKS])
def test_answers_are_right_and_pools_apart(task):
  train = task.examples(np.random.default_rng(1), 500)
  test = task.distinct(np.random.default_rng(1), 100, test=True)
  for example in train + test:
    assert example.answer == solve(task.name, example.prompt)
    assert example.prompt.startswith('<|im_start|>system\nAnswer briefly.<|im_end|>\n')
  assert not {e.content for e in train} & {e.content for e in test}
  assert not {question(e.prompt) for e in train} & {question(e.prompt) for e in test}


def test_json_counts_by_what_it_says(monkeypatch):
  """With the lab's own tokens, which have no quotes: bytes stand for characters."""

  class Bytes:
    def decode(self, ids, skip_special_tokens):
      assert not skip_special_tokens
      return bytes(ids).decode()

  monkeypatch.setattr(tokenizer, 'encoding_of', lambda _: Encoding(Bytes(), 3))
  task = task_of('call')
  example = task.examples(np.random.default_rng(0), 1)[0]
  texts = [
    example.answer + '\3',
    example.answer.replace(', ', ',  ') + '\3\0',
    example.answer,  # no end
    example.answer.replace('day', 'days') + '\3',
    example.answer[:-1] + '\3',
  ]
  rows = np.zeros((len(texts), max(map(len, texts))), np.int32)
  for row, text in zip(rows, texts, strict=True):
    row[: len(text)] = list(text.encode())
  found = matches(task, rows, [example] * len(texts))
  assert found.tolist() == [True, True, False, False, False]


def test_tasks_and_kinds_must_fit_the_base():
  with pytest.raises(
    InputError, match="pretrained '': not the base of tasks\n  - call"
  ):
    group_recipe({'tasks': ('math', 'call')})
  with pytest.raises(InputError, match='experts of a pretrained base are by rl alone'):
    group_recipe({'tasks': ('call',), 'pretrained': 'smollm2', 'kinds': ('rl', 'sft')})
