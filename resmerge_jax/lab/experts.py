"""Experts of one task each, from a base: by GRPO, or supervised until they match one."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resmerge_jax.errors import InputError
from resmerge_jax.lab.answers import is_right, prompts_of
from resmerge_jax.lab.loop import Adam, begin, length, run_steps
from resmerge_jax.lab.objectives import Grpo, Rollouts, Texts, answering
from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.tasks import Task, task_of
from resmerge_jax.lab.tokenizer import answer_ids, prompt_ids

_BETA2 = 0.99
_SFT_STEPS = 5  # between two looks at a supervised expert
Say = Callable[[str], None]


def train_rl(
  recipe: GroupRecipe,
  task_name: str,
  graph: nnx.GraphDef,
  base: nnx.State,
  rng: np.random.Generator,
  say: Say,
) -> tuple[nnx.State, dict[str, Any]]:
  """The expert after the last step of GRPO, and its record. No step is selected."""
  task, rl = task_of(task_name), recipe.rl
  adam = Adam(_BETA2, bf16_weights=rl.bf16_weights)
  training = begin(base, adam)
  keys_S = jax.random.split(jax.random.key(int(rng.integers(2**31))), rl.steps)
  record: dict[str, Any] = {'kind': 'rl', 'task': task_name, 'curve': []}
  for start in range(0, rl.steps, recipe.check_every):
    steps = np.arange(start, min(start + recipe.check_every, rl.steps))
    texts = _texts(task, rng, len(steps), rl.prompts)
    training, found = run_steps(
      training,
      _rates(rl.rate, rl.warmup, steps),
      Rollouts(*texts, keys_S[steps]),
      graph=graph,
      objective=Grpo(rl.samples),
      adam=adam,
    )
    means = {name: float(values.mean()) for name, values in found.items()}
    record['curve'].append({'step': int(steps[-1]) + 1, **means})
    say(f'rl_{task_name}: step {steps[-1] + 1}: reward {means["reward"]:.1%}')
  record['length'] = length(training.params, base)
  record['check'] = _share(recipe, task_name, graph, training.params)
  return training.params, record


def train_sft(
  recipe: GroupRecipe,
  kind: str,
  twin: dict[str, Any],
  graph: nnx.GraphDef,
  base: nnx.State,
  rng: np.random.Generator,
  say: Say,
) -> tuple[nnx.State, dict[str, Any]]:
  """The expert at the first look at which it matches the RL expert of record `twin`.

  `sft` is as often right on the same training prompts, `sft_length` is as far from the
  base.

  Raises:
    InputError: it does not match within `most` steps.
  """
  task_name, sft = twin['task'], recipe.sft
  task, adam = task_of(task_name), Adam(_BETA2)
  training = begin(base, adam)
  record: dict[str, Any] = {'kind': kind, 'task': task_name, 'curve': []}
  for steps in _spans(sft.most):
    training, found = run_steps(
      training,
      _rates(sft.rate, sft.warmup, steps),
      _texts(task, rng, len(steps), sft.examples),
      graph=graph,
      objective=answering,
      adam=adam,
    )
    now = length(training.params, base)
    entry = {
      'step': int(steps[-1]) + 1,
      'loss': float(found['loss'].mean()),
      'length': now,
    }
    if kind == 'sft':
      entry['check'] = _share(recipe, task_name, graph, training.params)
    record['curve'].append(entry)
    is_there = (
      entry['check'] >= twin['check'] if kind == 'sft' else now >= twin['length']
    )
    if is_there:
      record['length'] = now
      record['check'] = _share(recipe, task_name, graph, training.params)
      say(f'{kind}_{task_name}: step {entry["step"]}: {record["check"]:.1%}')
      return training.params, record
  raise InputError(
    f'{kind}_{task_name}: does not match rl_{task_name} in {sft.most} steps',
    [', '.join(f'{name} {value:.3g}' for name, value in entry.items())],
    fix='more of sft.most, or a higher sft.rate',
  )


def _spans(most: int) -> Iterator[np.ndarray]:
  for start in range(0, most, _SFT_STEPS):
    yield np.arange(start, start + _SFT_STEPS)


def _rates(rate: float, warmup: int, steps: np.ndarray) -> jax.Array:
  return jnp.asarray(rate * np.minimum((steps + 1) / warmup, 1), jnp.float32)


def _texts(task: Task, rng: np.random.Generator, n_steps: int, count: int) -> Texts:
  """[n_steps, count, ...]: training prompts and their right answers."""
  examples = task.examples(rng, n_steps * count)
  prompts = prompt_ids(task, examples)
  answers = answer_ids(task, [example.answer for example in examples])
  return Texts(
    jnp.asarray(prompts.reshape(n_steps, count, -1)),
    jnp.asarray(answers.reshape(n_steps, count, -1)),
  )


def _share(
  recipe: GroupRecipe, task_name: str, graph: nnx.GraphDef, params: nnx.State
) -> float:
  prompts = prompts_of(task_name, recipe.check_prompts, test=False)
  return float(is_right(nnx.merge(graph, params), prompts).mean())
