"""The base: able, and of two minds (lab/tasks.py)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resmerge_jax.errors import InputError
from resmerge_jax.lab.answers import is_right, prompts_of
from resmerge_jax.lab.loop import Adam, Training, as_bf16, begin, run_steps
from resmerge_jax.lab.objectives import Corpus, Texts, pretraining
from resmerge_jax.lab.recipe import GroupRecipe, ModelRecipe
from resmerge_jax.lab.tasks import BASE_TASKS
from resmerge_jax.lab.tokenizer import answer_ids, prompt_ids
from resmerge_jax.models.axes import Path
from resmerge_jax.models.decoder import Decoder, parameters

_ADAM = Adam(beta2=0.98, weight_decay=0.01)
_FINAL = 0.05  # share of the learning rate at the end of the mixed phase
_CHECKS = 4  # as many calls between two checks of all tasks
Say = Callable[[str], None]


def train_base(
  recipe: GroupRecipe, rng: np.random.Generator, seed: int, say: Say
) -> tuple[nnx.GraphDef, nnx.State, dict[str, Any]]:
  """A model whose parameters are bfloat16 numbers, kept in float32, and its record.

  Raises:
    InputError: it does not learn, or stays outside the band of accuracies.
  """
  graph, params = nnx.split(_untrained(recipe.model, seed))
  training = begin(params, _ADAM)
  run = _Run(recipe, rng, graph, training, say)
  run.clean()
  run.mixed()
  return graph, as_bf16(run.training.params), run.record


def _untrained(recipe: ModelRecipe, seed: int) -> Decoder:
  """Random weights; what layers add to the stream is small at first, whatever their
  number, and so are the logits.
  """
  model = Decoder(recipe.config(), nnx.Rngs(seed))
  factors: dict[Path, float] = {
    ('embed', 'embedding'): recipe.embedding_deviation / recipe.deviation,
    ('lm_head', 'kernel'): recipe.head_deviation / recipe.deviation,
    ('o', 'kernel'): (2 * recipe.layers) ** -0.5,
    ('down', 'kernel'): (2 * recipe.layers) ** -0.5,
  }
  for path, param in parameters(model).items():
    param[...] = param[...] * factors.get(path[-2:], 1.0)
  return model


class _Run:
  def __init__(
    self,
    recipe: GroupRecipe,
    rng: np.random.Generator,
    graph: nnx.GraphDef,
    training: Training,
    say: Say,
  ):
    self.recipe, self.rng, self.graph, self.say = recipe, rng, graph, say
    self.training = training
    self.steps = 0
    self.weights = dict.fromkeys((task.name for task in BASE_TASKS), 1.0)
    self.record: dict[str, Any] = {'kind': 'base', 'checks': [], 'losses': []}

  def clean(self) -> None:
    base = self.recipe.base
    while self.steps < base.clean_most:
      for _ in range(_CHECKS):
        steps = self.steps + np.arange(self.recipe.check_every)
        self._steps(base.rate * np.minimum((steps + 1) / base.warmup, 1), None)
      found = self._check('clean')
      if min(found.values()) >= base.clean_goal:
        self.record['clean_steps'] = self.steps
        return
      self._weigh({name: share >= base.learned for name, share in found.items()})
    raise InputError(
      f'the base does not reach {base.clean_goal:.0%} on every task in '
      f'{self.steps} clean steps',
      [f'{name}: {share:.1%}' for name, share in self._check('clean').items()],
      fix='another seed, or more of base.clean_most',
    )

  def mixed(self) -> None:
    base, every = self.recipe.base, self.recipe.check_every
    low, high = base.band
    self._weigh(dict.fromkeys(self.weights, False))
    for repeat in range(1 + base.repeats):
      # Once more from here, with other examples: what the phase tends to is the band.
      rates = base.rate * np.linspace(1, _FINAL, base.mixed_steps)
      for start in range(0, base.mixed_steps, every):
        self._steps(rates[start : start + every], base.mixed_right)
      found = self._check('mixed')
      inside = {name: low <= share <= high for name, share in found.items()}
      if all(inside.values()):
        self.record['mixed_phases'] = repeat + 1
        return
      self._weigh(inside)
    raise InputError(
      f'the base is outside {low:.0%} to {high:.0%} on a task after '
      f'{1 + base.repeats} mixed phases',
      [f'{name}: {share:.1%}' for name, share in found.items()],
      fix='another seed',
    )

  def _weigh(self, settled: dict[str, bool]) -> None:
    """Losses of tasks that are where they should be count less from here."""
    weight = self.recipe.base.settled_weight
    self.weights = {name: weight if is_so else 1.0 for name, is_so in settled.items()}

  def _steps(self, rates: np.ndarray, mixed_right: float | None) -> None:
    n_steps = len(rates)
    batches = {}
    for task, count in zip(BASE_TASKS, self.recipe.base.examples, strict=True):
      examples = task.examples(self.rng, n_steps * count)
      answers = [example.answer for example in examples]
      if mixed_right is not None:
        rightly = self.rng.random(len(examples)) < mixed_right
        answers = [
          example.answer if example.rightly == is_usual else example.habit
          for example, is_usual in zip(examples, rightly, strict=True)
        ]
      prompts, ids = prompt_ids(task, examples), answer_ids(task, answers)
      batches[task.name] = Texts(
        prompts.reshape(n_steps, count, -1), ids.reshape(n_steps, count, -1)
      )
    weights = {k: np.full(n_steps, w, np.float32) for k, w in self.weights.items()}
    self.training, losses = run_steps(
      self.training,
      jnp.asarray(rates, jnp.float32),
      jax.tree.map(jnp.asarray, Corpus(batches, weights)),
      graph=self.graph,
      objective=pretraining,
      adam=_ADAM,
    )
    self.steps += n_steps
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    self.record['losses'].append({'step': self.steps, **means})

  def _check(self, phase: str) -> dict[str, float]:
    model = nnx.merge(self.graph, as_bf16(self.training.params))
    found = {}
    for task in BASE_TASKS:
      prompts = prompts_of(task.name, self.recipe.check_prompts, test=False)
      found[task.name] = float(is_right(model, prompts).mean())
    self.record['checks'].append({'step': self.steps, 'phase': phase, **found})
    shares = ', '.join(f'{name} {share:.0%}' for name, share in found.items())
    self.say(f'base: step {self.steps} ({phase}): {shares}')
    return found
