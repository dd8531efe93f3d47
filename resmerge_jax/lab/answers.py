"""Greedy answers of a model to a task's prompts, and how many are right."""

import functools
from typing import NamedTuple

import numpy as np

from resmerge_jax.lab.tasks import Example, task_of
from resmerge_jax.lab.tokenizer import END_ID, PAD_ID, answer_ids, prompt_ids
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.generate import generate

_BATCH = 250  # of one program
_CHECK, _TEST = 1, 2  # seeds of the prompts, the same for every model


class Prompts(NamedTuple):
  """Examples of a task, as text and as tokens."""

  examples: tuple[Example, ...]
  prompts_QxP: np.ndarray
  answers_QxG: np.ndarray


@functools.cache
def prompts_of(task_name: str, count: int, test: bool) -> Prompts:
  """`count` different prompts of the test pool, or of the training pool for checks."""
  task = task_of(task_name)
  rng = np.random.default_rng(_TEST if test else _CHECK)
  examples = task.distinct(rng, count, test=test)
  return Prompts(
    tuple(examples),
    prompt_ids(task, examples),
    answer_ids(task, [example.answer for example in examples]),
  )


def greedy(model: Decoder, prompts_QxP: np.ndarray, width: int) -> np.ndarray:
  """int32 [Q, width]: answers up to their ends, then zeros."""
  found = []
  for start in range(0, len(prompts_QxP), _BATCH):
    part = prompts_QxP[start : start + _BATCH]
    # The last batch is filled up with its first prompt: one program for all.
    full = np.concatenate([part, np.repeat(part[:1], _BATCH - len(part), axis=0)])
    answers = generate(model, full, full != PAD_ID, max_new=width, eos_ids=(END_ID,))
    found.append(np.asarray(answers.tokens_BxG)[: len(part)])
  return np.concatenate(found)


def is_right(model: Decoder, prompts: Prompts) -> np.ndarray:
  """bool [Q]: exact matches, with the end in its place."""
  answers_QxG = greedy(model, prompts.prompts_QxP, prompts.answers_QxG.shape[1])
  return (answers_QxG == prompts.answers_QxG).all(axis=1)
