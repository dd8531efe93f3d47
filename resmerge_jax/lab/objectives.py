"""What is learned: the next token of texts, or to be rewarded (GRPO).

Letters as in models/layers.py; P is the width of prompts, G that of answers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from resmerge_jax.lab.tokenizer import END_ID, PAD_ID
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.generate import continued

_PROMPT_WEIGHT = 0.05  # of prompt tokens in pretraining
_TEMPERATURE = 1.0
_STD_FLOOR = 1e-4


class Texts(NamedTuple):
  """Prompts padded on the left, and answers with their ends padded on the right."""

  prompts_BxP: Any
  answers_BxG: Any


class Corpus(NamedTuple):
  """Texts of each task, and how much their losses count."""

  texts: dict[str, Texts]
  weights: dict[str, Any]


class Rollouts(NamedTuple):
  """Prompts, their right answers and the keys of the draws."""

  prompts_BxP: Any
  answers_BxG: Any
  key: Any


def pretraining(
  model: Decoder, _: Decoder, batch: Corpus
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted mean over tasks of the loss on all tokens, those of prompts weighing little."""
  losses = {}
  for name, texts in batch.texts.items():
    tokens_BxT = jnp.concatenate(texts, axis=1)
    mask_BxT = tokens_BxT != PAD_ID
    logits_BxTxV = model(tokens_BxT, mask_BxT)
    losses_BxT = optax.softmax_cross_entropy_with_integer_labels(
      logits_BxTxV[:, :-1], tokens_BxT[:, 1:]
    )
    is_answer_T = jnp.arange(1, tokens_BxT.shape[1]) >= texts.prompts_BxP.shape[1]
    both_BxT = mask_BxT[:, 1:] & mask_BxT[:, :-1]
    weights_BxT = both_BxT * jnp.where(is_answer_T, 1.0, _PROMPT_WEIGHT)
    losses[name] = (losses_BxT * weights_BxT).sum() / weights_BxT.sum()
  total = sum(losses[name] * weight for name, weight in batch.weights.items())
  return jnp.asarray(total) / sum(batch.weights.values()), losses


def answering(
  model: Decoder, _: Decoder, texts: Texts
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean loss of the answers' tokens: supervised fine-tuning."""
  logits_BxGxV = _answer_logits(model, texts)
  is_token_BxG = texts.answers_BxG != PAD_ID
  losses_BxG = optax.softmax_cross_entropy_with_integer_labels(
    logits_BxGxV, texts.answers_BxG
  )
  loss = (losses_BxG * is_token_BxG).sum() / is_token_BxG.sum()
  return loss, {'loss': loss}


class Grpo(NamedTuple):
  """The gradient of the reward, with `n_samples` answers drawn per prompt.

  One update per batch of draws, as DeepSeekMath has it: the probability ratio is one
  where the gradient is taken, so its clipping never acts and is left out. No KL term.

  Source: Shao et al., DeepSeekMath (2024), section 4.1.
  """

  n_samples: int

  def __call__(
    self, model: Decoder, fixed: Decoder, batch: Rollouts
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    prompts_BxP = jnp.repeat(batch.prompts_BxP, self.n_samples, axis=0)
    right_BxG = jnp.repeat(batch.answers_BxG, self.n_samples, axis=0)
    drawn_BxG = continued(
      fixed,
      prompts_BxP,
      prompts_BxP != PAD_ID,
      batch.key,
      _TEMPERATURE,
      jnp.array([END_ID]),
      right_BxG.shape[1],
    ).tokens_BxG
    reward_B = (drawn_BxG == right_BxG).all(axis=1).astype(jnp.float32)
    groups = reward_B.reshape(-1, self.n_samples)
    logits_BxGxV = _answer_logits(model, Texts(prompts_BxP, drawn_BxG))
    logp_BxGxV = jax.nn.log_softmax(logits_BxGxV / _TEMPERATURE)
    logp_BxG = jnp.take_along_axis(logp_BxGxV, drawn_BxG[..., None], axis=-1)[..., 0]
    share_BxG = token_shares(drawn_BxG, END_ID)
    loss = -(advantages(groups).reshape(-1, 1) * logp_BxG * share_BxG).sum()
    entropy_BxG = -(jnp.exp(logp_BxGxV) * logp_BxGxV).sum(axis=-1)
    return loss, {
      'reward': reward_B.mean(),
      'mixed': (groups.std(axis=1) > 0).mean(),
      'entropy': (entropy_BxG * share_BxG).sum(),
    }


def advantages(rewards_QxN: jax.Array) -> jax.Array:
  """[Q, N]: by how many deviations an answer is better than the others to its prompt."""
  std = rewards_QxN.std(axis=1, keepdims=True)
  return (rewards_QxN - rewards_QxN.mean(axis=1, keepdims=True)) / (std + _STD_FLOOR)


def token_shares(drawn_BxG: jax.Array, end_id: int) -> jax.Array:
  """[B, G]: one over the number of all tokens, up to the ends; 0 after them."""
  # Everything up to the end of the text, whatever was drawn there.
  ended_BxG = jnp.cumsum(drawn_BxG == end_id, axis=1) - (drawn_BxG == end_id) > 0
  return ~ended_BxG / (~ended_BxG).sum()


def _answer_logits(model: Decoder, texts: Texts) -> jax.Array:
  """float32 [B, G, V]: what the model expects at each place of the answers."""
  width = texts.prompts_BxP.shape[1]
  tokens_BxT = jnp.concatenate(texts, axis=1)[:, :-1]
  x_BxTxD, _ = model.hidden(
    tokens_BxT,
    jnp.concatenate(
      [texts.prompts_BxP != PAD_ID, jnp.ones_like(texts.answers_BxG, bool)], axis=1
    )[:, :-1],
  )
  return model.logits(x_BxTxD[:, width - 1 :])
