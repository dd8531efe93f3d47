"""GRPO for a base of a hundred million parameters and more, on a CPU.

As lab/objectives.Grpo, but answers are read as text on the host, the gradient is summed
prompt by prompt, and a prompt goes through the model once for all its answers. A prompt
whose answers are all right or all wrong has no gradient and costs none.

Weights are kept and moved in float32; who answers, and whose gradient is taken, is the
model of them rounded to bfloat16, as it will be stored: a step is far below bfloat16's,
and what the unrounded model has learned may be lost by rounding.

Letters as in models/layers.py; Q prompts with N answers each, P wide, and G the answers.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from resmerge_jax.lab.answers import is_right, matches, prompts_of
from resmerge_jax.lab.experts import Say
from resmerge_jax.lab.loop import Adam, Training, as_bf16, begin, length, moved
from resmerge_jax.lab.objectives import advantages, token_shares
from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.resume import Kept
from resmerge_jax.lab.tasks import task_of
from resmerge_jax.lab.tokenizer import PAD_ID, encoding_of, prompt_ids
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.generate import continued

_moved = jax.jit(moved, static_argnames='adam', donate_argnums=0)
_stored = jax.jit(as_bf16)
_BETA2 = 0.99
_KEEP_EVERY = 5  # steps
_TEMPERATURE = 0.7  # at 1 the base is right so seldom that RL has little to begin with


class Answered(NamedTuple):
  """A prompt [1, P], answers to it [N, G], and the weight of each of their tokens."""

  prompt_1xP: Any
  drawn_NxG: Any
  weights_NxG: Any


def train_chat_rl(
  recipe: GroupRecipe,
  task_name: str,
  graph: nnx.GraphDef,
  base: nnx.State,
  entropy: list[int],
  kept: Kept,
  say: Say,
) -> tuple[nnx.State, dict[str, Any]]:
  """The expert after the last step, and its record with a curve entry per step.

  All draws of a step come from `entropy` and its number, so that a training which was
  killed ends as one that was not.

  Raises:
    InputError: what is kept is of another recipe or seed.
  """
  rl, adam = recipe.rl, Adam(_BETA2, bf16_weights=recipe.rl.bf16_weights)
  record: dict[str, Any] = {'kind': 'rl', 'task': task_name, 'curve': []}
  training = begin(base, adam)
  if found := kept.read(training):
    training, record = found
    say(f'rl_{task_name}: continues after step {len(record["curve"])}')
  for step in range(len(record['curve']), rl.steps):
    begun_s = time.process_time()
    rng = np.random.default_rng([*entropy, step])
    rate = rl.rate * min((step + 1) / rl.warmup, 1)
    training, entry = _step(recipe, task_name, graph, training, rng, rate, adam)
    entry = {'step': step + 1, **entry, 'cpu_s': time.process_time() - begun_s}
    record['curve'].append(entry)
    shown = ', '.join(f'{k} {v:.3g}' for k, v in entry.items() if k != 'step')
    say(f'rl_{task_name}: step {step + 1}: {shown}')
    if (step + 1) % _KEEP_EVERY == 0:
      kept.write(training, record)
  params = training.params
  del training  # its moments are twice the model
  record['length'] = length(params, base)
  record['same_bf16'] = same_bf16(params, base)
  prompts = prompts_of(task_name, recipe.check_prompts, test=False)
  record['check'] = float(is_right(nnx.merge(graph, _stored(params)), prompts).mean())
  return params, record


def same_bf16(params: nnx.State, base: nnx.State) -> float:
  """Share of the parameters that are the base's once rounded to bfloat16."""
  same = jax.tree.map(lambda a, b: jnp.sum(a == b), as_bf16(params), as_bf16(base))
  sizes = (leaf.size for leaf in jax.tree.leaves(base))
  return float(sum(int(n) for n in jax.tree.leaves(same)) / sum(sizes))


def _step(
  recipe: GroupRecipe,
  task_name: str,
  graph: nnx.GraphDef,
  training: Training,
  rng: np.random.Generator,
  rate: float,
  adam: Adam,
) -> tuple[Training, dict[str, float]]:
  task, rl = task_of(task_name), recipe.rl
  end_id = encoding_of(task).end_id
  examples = task.examples(rng, rl.prompts)
  prompts_QxP = prompt_ids(task, examples)
  params = _stored(training.params)
  drawn_BxG = draw(
    params,
    prompts_QxP,
    jax.random.key(int(rng.integers(2**31))),
    graph=graph,
    end_id=end_id,
    samples=rl.samples,
    max_new=task.answer_width,
  )
  asked = [example for example in examples for _ in range(rl.samples)]
  right = matches(task, np.asarray(drawn_BxG), asked)
  rewards_QxN = right.reshape(rl.prompts, rl.samples).astype(np.float32)
  weights_BxG = advantages(jnp.asarray(rewards_QxN)).reshape(-1, 1) * token_shares(
    drawn_BxG, end_id
  )
  shape = (rl.prompts, rl.samples, -1)
  drawn_QxNxG, weights_QxNxG = drawn_BxG.reshape(shape), weights_BxG.reshape(shape)
  grads = jax.tree.map(jnp.zeros_like, params)
  mixed = np.flatnonzero(rewards_QxN.std(axis=1) > 0)
  for q in mixed:
    answered = Answered(prompts_QxP[q : q + 1], drawn_QxNxG[q], weights_QxNxG[q])
    grads = add_gradient(grads, params, answered, graph=graph)
  training = _moved(training, grads, jnp.float32(rate), adam)
  reward, share = float(rewards_QxN.mean()), len(mixed) / rl.prompts
  return training, {'reward': reward, 'mixed': share}


@functools.partial(jax.jit, static_argnames=('graph', 'end_id', 'samples', 'max_new'))
def draw(
  params: nnx.State,
  prompts_QxP: jax.Array,
  key: jax.Array,
  *,
  graph: nnx.GraphDef,
  end_id: int,
  samples: int,
  max_new: int,
) -> jax.Array:
  """int32 [Q * N, G]: answers as they are drawn, those to one prompt together."""
  mask_QxP = prompts_QxP != PAD_ID
  model: Decoder = nnx.merge(graph, params)
  ends = jnp.array([end_id])
  return continued(
    model, prompts_QxP, mask_QxP, key, _TEMPERATURE, ends, max_new, samples
  ).tokens_BxG


@functools.partial(jax.jit, static_argnames='graph', donate_argnums=0)
def add_gradient(
  grads: nnx.State, params: nnx.State, answered: Answered, *, graph: nnx.GraphDef
) -> nnx.State:
  """`grads` and the gradient of minus the weighted log-probability of the answers."""
  prompt_1xP, drawn_NxG, weights_NxG = answered
  n_answers, width = drawn_NxG.shape

  def loss(params: nnx.State) -> jax.Array:
    model: Decoder = nnx.merge(graph, params)
    room = model.empty_cache(1, prompt_1xP.shape[1] + width - 1)
    x_1xPxD, cache = model.hidden(prompt_1xP, prompt_1xP != PAD_ID, cache=room)
    assert cache is not None
    x_NxGxD, _ = model.hidden(drawn_NxG[:, :-1], cache=cache.repeated(n_answers))
    first_Nx1xD = jnp.repeat(x_1xPxD[:, -1:], n_answers, axis=0)
    logits_NxGxV = model.logits(jnp.concatenate([first_Nx1xD, x_NxGxD], axis=1))
    losses_NxG = optax.softmax_cross_entropy_with_integer_labels(
      logits_NxGxV / _TEMPERATURE, drawn_NxG
    )
    return (weights_NxG * losses_NxG).sum()

  return jax.tree.map(jnp.add, grads, jax.grad(loss)(params))
