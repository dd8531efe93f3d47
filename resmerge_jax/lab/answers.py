"""Greedy answers of a model to a task's prompts, and how many are right."""

import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resmerge_jax.lab.examples import Example, Task
from resmerge_jax.lab.tasks import task_of
from resmerge_jax.lab.tokenizer import PAD_ID, ended_texts, prompt_ids
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.generate import generate

_BATCH = 250  # of one program
_CHECK, _TEST = 1, 2  # seeds of the prompts, the same for every model


class Prompts(NamedTuple):
  """Examples of a task, and their prompts as tokens."""

  task: Task
  examples: tuple[Example, ...]
  prompts_QxP: np.ndarray


@functools.cache
def prompts_of(task_name: str, count: int, test: bool) -> Prompts:
  """`count` different prompts of the test pool, or of the training pool for checks."""
  task = task_of(task_name)
  rng = np.random.default_rng(_TEST if test else _CHECK)
  examples = task.distinct(rng, count, test=test)
  return Prompts(task, tuple(examples), prompt_ids(task, examples))


def greedy(model: Decoder, prompts_QxP: np.ndarray, width: int) -> np.ndarray:
  """int32 [Q, width]: answers up to their ends, then zeros."""
  found, size = [], min(_BATCH, len(prompts_QxP))
  for start in range(0, len(prompts_QxP), size):
    part = prompts_QxP[start : start + size]
    # The last batch is filled up with its first prompt: one program for all.
    full = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
    eos_ids = model.config.eos_ids
    answers = generate(model, full, full != PAD_ID, max_new=width, eos_ids=eos_ids)
    found.append(np.asarray(answers.tokens_BxG)[: len(part)])
  return np.concatenate(found)


def is_right(model: Decoder, prompts: Prompts) -> np.ndarray:
  """bool [Q]: greedy answers that are right and end there."""
  answers_QxG = greedy(model, prompts.prompts_QxP, prompts.task.answer_width)
  return matches(prompts.task, answers_QxG, prompts.examples)


def matches(
  task: Task, answers_QxG: np.ndarray, examples: Sequence[Example]
) -> np.ndarray:
  """bool [Q]: answers whose text is the right one; of JSON, the same object."""
  texts = ended_texts(task, answers_QxG)
  pairs = zip(texts, examples, strict=True)
  return np.array([text is not None and _is(text, e) for text, e in pairs])


def _is(text: str, example: Example) -> bool:
  if text == example.answer or not example.begun.startswith('{'):
    return text == example.answer
  try:
    answer = json.loads(example.begun + example.answer)
    return json.loads(example.begun + text) == answer
  except ValueError:
    return False
