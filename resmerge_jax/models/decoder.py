"""The decoder: tokens to logits. Letters as in models/layers.py."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx

from resmerge_jax.models.axes import AxisRules, Path, split_batch
from resmerge_jax.models.config import DecoderConfig
from resmerge_jax.models.layers import Dense, Embed, Layer, Past, RMSNorm, Setup
from resmerge_jax.models.rope import rotation


class Cache(NamedTuple):
  """Keys and values of all layers, and which slots hold a token of the text."""

  layers: tuple[Past, ...]
  is_token_BxS: jax.Array

  def repeated(self, count: int) -> 'Cache':
    """For `count` texts that begin with each of these, side by side."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, 0) if x.ndim else x, self)


class Decoder(nnx.Module):
  """A Qwen2, Qwen3 or Llama model.

  Args:
    config: what to compute.
    rngs: their `params` stream draws the weights, as transformers starts a model; None
      makes a model of shapes alone, for `with_arrays`.
    dtype: what is computed in; `param_dtype` unless given.
    param_dtype: what the parameters are stored in.
    rules: mesh axes per kind of dimension, kept in the parameters' metadata
      (`out_sharding`). Nothing is placed by them here. Inside `jax.set_mesh(mesh)`
      activations are split by `rules.batch`.
  """

  def __init__(
    self,
    config: DecoderConfig,
    rngs: nnx.Rngs | None,
    *,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    rules: AxisRules | None = None,
  ):
    param_dtype = jnp.dtype(param_dtype)
    dtype = param_dtype if dtype is None else jnp.dtype(dtype)
    rules = rules or AxisRules()
    setup = Setup(config, rngs, dtype, param_dtype, rules)
    self.config = config
    self.batch_axis = rules.batch
    self.embed = Embed(setup)
    self.layers = nnx.List([Layer(setup) for _ in range(config.num_hidden_layers)])
    self.final_norm = RMSNorm(setup, 'D')
    tied = config.tie_word_embeddings
    self.lm_head = None if tied else Dense(setup, 'BTD,DV->BTV', out=jnp.float32)

  def __call__(
    self,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array | None = None,
    positions_BxT: jax.Array | None = None,
  ) -> jax.Array:
    """Logits, float32 [B, T, V], of what follows each token.

    Args:
      tokens_BxT: int32, each below the size of the vocabulary.
      mask_BxT: True for tokens, False for padding, on either side; None: no padding.
      positions_BxT: int32; the number of tokens before, unless given.
    """
    x_BxTxD, _ = self.hidden(tokens_BxT, mask_BxT, positions_BxT)
    return self.logits(x_BxTxD)

  def hidden(
    self,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array | None = None,
    positions_BxT: jax.Array | None = None,
    cache: Cache | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Normed states [B, T, D] before the head, and the cache with these tokens in it.

    With a cache, `tokens_BxT` follow the tokens in it.
    """
    if mask_BxT is None:
      mask_BxT = jnp.ones(tokens_BxT.shape, bool)
    start = 0 if cache is None else cache.layers[0].start
    is_token_BxS = mask_BxT.astype(bool)
    if cache is not None:
      is_token_BxS = jax.lax.dynamic_update_slice_in_dim(
        cache.is_token_BxS, is_token_BxS, start, 1
      )
    slots_T = start + jnp.arange(tokens_BxT.shape[1])
    if positions_BxT is None:
      counts_BxS = jnp.cumsum(is_token_BxS, axis=1)
      counts_BxT = jax.lax.dynamic_slice_in_dim(counts_BxS, start, len(slots_T), 1)
      positions_BxT = jnp.maximum(counts_BxT - 1, 0)
    earlier_TxS = jnp.arange(is_token_BxS.shape[1]) <= slots_T[:, None]
    sees_BxTxS = earlier_TxS & is_token_BxS[:, None]
    turned = rotation(self.config, positions_BxT)
    x_BxTxD = split_batch(self.embed(tokens_BxT), self.batch_axis)
    pasts: list[Any] = []
    for i, layer in enumerate(self.layers):
      past = None if cache is None else cache.layers[i]
      x_BxTxD, past = layer(x_BxTxD, turned, sees_BxTxS, past)
      x_BxTxD = split_batch(x_BxTxD, self.batch_axis)
      pasts.append(past)
    if cache is not None:
      cache = Cache(tuple(pasts), is_token_BxS)
    return self.final_norm(x_BxTxD), cache

  def logits(self, x_BxTxD: jax.Array) -> jax.Array:
    """float32 [B, T, V] of states that `hidden` gave."""
    head = self.embed.attend if self.lm_head is None else self.lm_head
    return head(x_BxTxD)

  def empty_cache(self, batch: int, slots: int) -> Cache:
    """Room for `slots` tokens, padding included, of each of `batch` texts."""
    sizes = self.config.sizes
    room = jnp.zeros((batch, slots, sizes['K'], sizes['H']), self.embed.dtype)
    past = Past(room, room, jnp.int32(0))
    return Cache((past,) * len(self.layers), jnp.zeros((batch, slots), bool))


def parameters(model: Decoder) -> dict[Path, nnx.Param]:
  """The parameters by their path in the tree, in the order of the paths."""
  return cast(dict[Path, nnx.Param], dict(nnx.to_flat_state(nnx.state(model))))


def with_arrays(model: Decoder, arrays: Mapping[Path, jax.Array]) -> Decoder:
  """A decoder like `model`, which may be of shapes alone, with these parameters."""
  flat: Any = {path: p.replace(arrays[path]) for path, p in parameters(model).items()}
  return nnx.merge(nnx.graphdef(model), nnx.from_flat_state(flat))
