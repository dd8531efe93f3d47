"""Losses by their formulas, from the logits of whole texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resmerge_jax.lab.loop import Adam, begin, length, run_steps
from resmerge_jax.lab.objectives import (
  Corpus,
  Grpo,
  Rollouts,
  Texts,
  answering,
  pretraining,
)
from resmerge_jax.lab.recipe import ModelRecipe
from resmerge_jax.lab.tasks import task_of
from resmerge_jax.lab.tokenizer import END_ID, answer_ids, prompt_ids
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.generate import generate

TINY = ModelRecipe(hidden_size=16, intermediate_size=24, layers=1)
TASK = task_of('math')
COUNT = 6


@pytest.fixture(scope='module')
def model():
  return Decoder(TINY.config(), nnx.Rngs(0))


@pytest.fixture(scope='module')
def texts():
  examples = TASK.examples(np.random.default_rng(0), COUNT)
  answers = answer_ids(TASK, [example.answer for example in examples])
  return Texts(prompt_ids(TASK, examples), answers)


def compiled(objective, model, batch):
  """What an objective gives: as one program, which takes less than its parts."""
  graph, params = nnx.split(model)

  def call(params, batch):
    model = nnx.merge(graph, params)
    return objective(model, model, batch)

  return jax.jit(call)(params, batch)


def logp(model, texts):
  """float64 [B, T - 1, V] of the next token at each place but the last."""
  tokens = np.concatenate(texts, axis=1)
  logits = np.asarray(nnx.jit(Decoder.__call__)(model, tokens), np.float64)[:, :-1]
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), tokens[:, 1:]


def picked(model, texts):
  all_logp, targets = logp(model, texts)
  return np.take_along_axis(all_logp, targets[..., None], -1)[..., 0]


def test_supervised_loss_is_the_mean_over_answers(model, texts):
  chosen = picked(model, texts)[:, -TASK.answer_width :]
  tokens = texts.answers_BxG != 0
  loss, _ = compiled(answering, model, texts)
  # Float32 logits of order one.
  np.testing.assert_allclose(loss, -chosen[tokens].mean(), rtol=1e-5)


def test_pretraining_weighs_prompts_less(model, texts):
  chosen = picked(model, texts)  # all prompts of this task are as wide as can be
  weights = np.where(np.arange(chosen.shape[1]) >= TASK.prompt_width - 1, 1, 0.05)
  weights = weights * (np.concatenate(texts, axis=1)[:, 1:] != 0)
  _, losses = compiled(pretraining, model, Corpus({'math': texts}, {'math': 1.0}))
  np.testing.assert_allclose(
    losses['math'], -(chosen * weights).sum() / weights.sum(), rtol=1e-5
  )


def test_pretraining_is_the_weighted_mean_of_tasks(model, texts):
  first = Texts(*(tokens[:1] for tokens in texts))
  corpus = Corpus({'math': texts, 'other': first}, {'math': 1.0, 'other': 0.2})
  loss, losses = compiled(pretraining, model, corpus)
  assert losses['math'] != losses['other']
  mean = (losses['math'] + 0.2 * losses['other']) / 1.2
  np.testing.assert_allclose(loss, mean, rtol=1e-6)


def test_grpo_is_the_advantage_times_the_log_probability(model, texts):
  key, n = jax.random.key(5), 4
  repeated = np.repeat(texts.prompts_BxP, n, axis=0)
  drawn = generate(
    model,
    repeated,
    repeated != 0,
    max_new=TASK.answer_width,
    eos_ids=(END_ID,),
    temperature=1.0,
    key=key,
  )
  tokens, lengths = np.asarray(drawn.tokens_BxG), np.asarray(drawn.lengths_B)
  # What the first prompt's second draw was is its right answer, and of no other.
  right = np.full_like(texts.answers_BxG, 3)
  right[0] = tokens[1]
  reward = (tokens == np.repeat(right, n, axis=0)).all(1)
  groups = reward.reshape(COUNT, n)
  assert 0 < groups[0].sum() < n
  advantage = groups - groups.mean(1, keepdims=True)
  advantage = (advantage / (groups.std(1, keepdims=True) + 1e-4)).reshape(-1)
  kept = np.arange(TASK.answer_width) < lengths[:, None]
  chosen = picked(model, Texts(repeated, tokens))[:, -TASK.answer_width :]
  expected = -(advantage[:, None] * chosen * kept).sum() / kept.sum()
  batch = Rollouts(texts.prompts_BxP, right, key)
  loss, found = compiled(Grpo(n), model, batch)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  assert float(found['reward']) == pytest.approx(reward.mean())
  assert float(found['mixed']) == pytest.approx(1 / COUNT)


@pytest.mark.parametrize('bf16', [False, True])
def test_steps_of_supervision_lower_the_loss(model, texts, bf16):
  graph, params = nnx.split(model)
  adam = Adam(beta2=0.99, bf16_weights=bf16)
  batches = jax.tree.map(lambda x: jnp.asarray(np.stack([x] * 20)), texts)
  training, record = run_steps(
    begin(params, adam),
    jnp.full(20, 1e-2),
    batches,
    graph=graph,
    objective=answering,
    adam=adam,
  )
  assert record['loss'][-1] < 0.5 * record['loss'][0]
  rounded = jax.tree.map(
    lambda x: x.astype('bfloat16').astype(x.dtype), training.params
  )
  assert (length(rounded, training.params) == 0) == bf16
  assert length(training.params, params) > 0.1
