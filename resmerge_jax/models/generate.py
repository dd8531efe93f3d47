"""Continuing texts with a decoder: greedy, or sampled at a temperature.

Letters as in models/layers.py; G is the number of new tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resmerge_jax.errors import InputError
from resmerge_jax.models.decoder import Cache, Decoder

_OPENING = 16  # tokens: an opening is a multiple, so that few programs are compiled


class Generated(NamedTuple):
  """New tokens, int32 [B, G], and how many of them each text has, int32 [B].

  A text that ends has its end-of-text token last; what follows it is zeros.
  """

  tokens_BxG: jax.Array
  lengths_B: jax.Array


def left_padded(
  prompts: Sequence[Sequence[int]], width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens [B, T] that end together, and the mask that is True where there is one.

  T is `width`, or the length of the longest prompt: one program serves a T.

  Raises:
    InputError: a prompt without tokens, or longer than `width`.
  """
  lengths = [len(prompt) for prompt in prompts]
  width = max(lengths, default=0) if width is None else width
  if not lengths or min(lengths) == 0 or max(lengths) > width:
    raise InputError(f'prompts: each needs 1 to {width} tokens, they have {lengths}')
  tokens_BxT = np.zeros((len(prompts), width), np.int32)
  for row, prompt in zip(tokens_BxT, prompts, strict=True):
    row[width - len(prompt) :] = prompt
  return tokens_BxT, np.arange(width) >= width - np.asarray(lengths)[:, None]


def generate(
  model: Decoder,
  tokens_BxT: Any,
  mask_BxT: Any,
  *,
  max_new: int,
  eos_ids: Sequence[int],
  temperature: float = 0.0,
  key: jax.Array | None = None,
) -> Generated:
  """Up to `max_new` tokens after each prompt. One program per shape of the arguments.

  What all prompts begin with goes through the model once, in whole sixteens of tokens.

  Args:
    tokens_BxT: int32 prompts, padded on the left (`left_padded`).
    mask_BxT: True for tokens, False for padding.
    eos_ids: a text ends with any of them: `model.config.eos_ids`, those that a
      generation_config.json adds, or none.
    temperature: 0 takes the likeliest token. Above it a token is drawn with
      probability softmax(logits / temperature), from `key`, the row and the step.

  Raises:
    InputError: prompts with other padding, tokens outside the vocabulary, too many
      positions, or a temperature without a key.
  """
  tokens_BxT, mask_BxT = np.asarray(tokens_BxT), np.asarray(mask_BxT, bool)
  problems = _problems(model, tokens_BxT, mask_BxT, max_new, temperature, key)
  if problems:
    raise InputError('generate: arguments that cannot be used', problems)
  graph, state = nnx.split(model)
  n = _shared(tokens_BxT, mask_BxT)
  return _generate(
    state,
    tokens_BxT[:1, mask_BxT[0]][:, :n],
    tokens_BxT[:, n:],
    mask_BxT[:, : mask_BxT.shape[1] - n],  # without as many tokens, not as much padding
    key if temperature > 0 else None,
    jnp.float32(temperature),
    np.asarray(eos_ids, np.int32),
    graph=graph,
    max_new=max_new,
  )


def _shared(tokens_BxT: np.ndarray, mask_BxT: np.ndarray) -> int:
  """How many tokens all prompts begin with: a multiple of sixteen, and not all of one."""
  least = int(mask_BxT.sum(axis=1).min()) - 1
  pairs = zip(tokens_BxT, mask_BxT, strict=True)
  starts = np.array([row[mask][:least] for row, mask in pairs])
  n_same = int(np.logical_and.accumulate((starts == starts[0]).all(axis=0)).sum())
  return n_same // _OPENING * _OPENING if len(starts) > 1 else 0


def _problems(
  model: Decoder,
  tokens_BxT: np.ndarray,
  mask_BxT: np.ndarray,
  max_new: int,
  temperature: float,
  key: jax.Array | None,
) -> list[str]:
  problems = []
  config = model.config
  if tokens_BxT.ndim != 2 or tokens_BxT.shape != mask_BxT.shape or not tokens_BxT.size:
    return [f'shapes: tokens {tokens_BxT.shape}, mask {mask_BxT.shape}']
  if not np.issubdtype(tokens_BxT.dtype, np.integer):
    problems.append(f'tokens: {tokens_BxT.dtype} instead of integers')
  elif tokens_BxT.min() < 0 or tokens_BxT.max() >= config.vocab_size:
    problems.append(f'tokens: not all are in the vocabulary of {config.vocab_size}')
  if not mask_BxT[:, -1].all() or (mask_BxT[:, :-1] > mask_BxT[:, 1:]).any():
    problems.append('mask: prompts are padded on the left, and have a token')
  if max_new < 1:
    problems.append(f'max_new {max_new}: not above 0')
  most = int(mask_BxT.sum(axis=1).max(initial=0)) + max_new
  if most > config.max_position_embeddings:
    problems.append(
      f'{most} positions: max_position_embeddings is {config.max_position_embeddings}'
    )
  if not temperature >= 0:
    problems.append(f'temperature {temperature}: not 0 or above')
  if temperature > 0 and key is None:
    problems.append('key: missing, and a temperature draws')
  return problems


class _Progress(NamedTuple):
  step: jax.Array
  cache: Cache
  last_B: jax.Array
  is_done_B: jax.Array
  tokens_BxG: jax.Array
  lengths_B: jax.Array


@functools.partial(jax.jit, static_argnames=('graph', 'max_new'))
def _generate(
  state: nnx.State,
  opening_1xP: jax.Array,
  tokens_BxT: jax.Array,
  mask_BxT: jax.Array,
  key: jax.Array | None,
  temperature: jax.Array,
  eos_ids: jax.Array,
  *,
  graph: nnx.GraphDef,
  max_new: int,
) -> Generated:
  model: Decoder = nnx.merge(graph, state)
  slots = opening_1xP.shape[1] + tokens_BxT.shape[1] + max_new - 1
  cache = None
  if opening_1xP.size:
    _, opened = model.hidden(opening_1xP, cache=model.empty_cache(1, slots))
    assert opened is not None
    cache = opened.repeated(len(tokens_BxT))
  return continued(
    model, tokens_BxT, mask_BxT, key, temperature, eos_ids, max_new, cache=cache
  )


def continued(
  model: Decoder,
  tokens_BxT: jax.Array,
  mask_BxT: jax.Array,
  key: jax.Array | None,
  temperature: jax.Array | float,
  eos_ids: Any,
  max_new: int,
  samples: int = 1,
  cache: Cache | None = None,
) -> Generated:
  """`generate` for use inside a program: nothing is checked. No key: greedy.

  The prompts go in one pass, then a token a step until all texts have ended. Each is
  continued `samples` times, in rows that lie together. `cache`: what comes before the
  prompts, with room for them and for `max_new` - 1 tokens.
  """
  n_prompts, width = tokens_BxT.shape
  n_texts = n_prompts * samples

  def choose(x_BxTxD: jax.Array, step: jax.Array) -> jax.Array:
    logits_BxV = model.logits(x_BxTxD[:, -1:])[:, 0]
    if key is None:
      return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    # Of its row and step alone: a batch of other texts changes no draw.
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys_B = fold(jax.random.fold_in(key, step), jnp.arange(n_texts))
    return jax.vmap(jax.random.categorical)(keys_B, logits_BxV / temperature)

  def is_going(now: _Progress) -> jax.Array:
    return (now.step < max_new) & ~jnp.all(now.is_done_B)

  def advance(now: _Progress) -> _Progress:
    x_Bx1xD, cache = model.hidden(now.last_B[:, None], cache=now.cache)
    assert cache is not None
    return emit(now, cache, choose(x_Bx1xD, now.step))

  def emit(now: _Progress, cache: Cache, chosen_B: jax.Array) -> _Progress:
    chosen_B = jnp.where(now.is_done_B, 0, chosen_B.astype(jnp.int32))
    return _Progress(
      now.step + 1,
      cache,
      chosen_B,
      now.is_done_B | jnp.isin(chosen_B, eos_ids),
      now.tokens_BxG.at[:, now.step].set(chosen_B),
      now.lengths_B + ~now.is_done_B,
    )

  if cache is None:
    cache = model.empty_cache(n_prompts, width + max_new - 1)
  x_BxTxD, cache = model.hidden(tokens_BxT, mask_BxT, cache=cache)
  assert cache is not None
  if samples > 1:
    x_BxTxD = jnp.repeat(x_BxTxD[:, -1:], samples, axis=0)
    cache = cache.repeated(samples)
  zeros_B = jnp.zeros(n_texts, jnp.int32)
  start = _Progress(
    jnp.int32(0),
    cache,
    zeros_B,
    zeros_B > 0,
    jnp.zeros((n_texts, max_new), jnp.int32),
    zeros_B,
  )
  start = emit(start, cache, choose(x_BxTxD, start.step))
  done = jax.lax.while_loop(is_going, advance, start)
  return Generated(done.tokens_BxG, done.lengths_B)
