"""The parts of a decoder. Shape letters, here and in all of models/:

  B batch    T time (tokens)  D hidden   F mlp   V vocabulary
  N query heads   K key and value heads   H head dim   S slots of keys and values

Norms, rotations, the softmax and the logits are float32; all else is `dtype`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resmerge_jax.models.axes import AxisRules
from resmerge_jax.models.config import DecoderConfig
from resmerge_jax.models.rope import Rotation, rotate


@dataclasses.dataclass
class Setup:
  """What every part is made from: `dtype` is computed in, `param_dtype` is stored.

  Without `rngs`, parameters have a shape and no value.
  """

  config: DecoderConfig
  rngs: nnx.Rngs | None
  dtype: np.dtype
  param_dtype: np.dtype
  rules: AxisRules

  def kernel(self, letters: str) -> nnx.Param:
    """Normal with the config's initializer_range, as transformers starts."""
    init = nnx.initializers.normal(self.config.initializer_range)
    return self._param(letters, init, self.rules.axes(letters))

  def bias(self, letters: str) -> nnx.Param:
    return self._param(letters, nnx.initializers.zeros, self.rules.axes(letters))

  def scale(self, letter: str) -> nnx.Param:
    return self._param(letter, nnx.initializers.ones, (None,))

  def _param(
    self, letters: str, init: Callable[..., jax.Array], axes: Any
  ) -> nnx.Param:
    shape = tuple(self.config.sizes[letter] for letter in letters)
    value: Any = jax.ShapeDtypeStruct(shape, self.param_dtype)
    if self.rngs is not None:
      value = init(self.rngs.params(), shape, self.param_dtype)
    # Not eager: a model without a mesh is made as any other.
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


class Past(NamedTuple):
  """Keys and values of one layer, [B, S, K, H] each, filled up to slot `start`."""

  k: jax.Array
  v: jax.Array
  start: jax.Array


class Embed(nnx.Module):
  """Vectors of tokens, and their products with hidden states where the head is tied."""

  def __init__(self, setup: Setup):
    self.embedding = setup.kernel('VD')
    self.dtype = setup.dtype

  def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
    return self.embedding[...][tokens_BxT].astype(self.dtype)

  def attend(self, x_BxTxD: jax.Array) -> jax.Array:
    table_VxD = self.embedding[...].astype(self.dtype)
    return jnp.einsum(
      'btd,vd->btv', x_BxTxD, table_VxD, preferred_element_type='float32'
    )


class Dense(nnx.Module):
  """A product as its equation says, 'BTD,DNH->BTNH' for example, plus a bias."""

  def __init__(self, setup: Setup, equation: str, bias: bool = False, out: Any = None):
    kernel, result = equation.partition(',')[2].split('->')
    self.kernel = setup.kernel(kernel)
    self.bias = setup.bias(result.removeprefix('BT')) if bias else None
    self.equation = equation
    self.dtype = setup.dtype
    self.out = jnp.dtype(out or setup.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...].astype(self.dtype)
    y = jnp.einsum(self.equation, x, kernel, preferred_element_type=self.out)
    return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class RMSNorm(nnx.Module):
  """Root mean square one over the last dimension, then a scale.

  Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019).
  """

  def __init__(self, setup: Setup, letter: str):
    self.scale = setup.scale(letter)
    self.epsilon = setup.config.rms_norm_eps

  def __call__(self, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(power + self.epsilon)
    return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Attention(nnx.Module):
  """Causal attention, N / K query heads to a key head."""

  def __init__(self, setup: Setup):
    config = setup.config
    self.q = Dense(setup, 'BTD,DNH->BTNH', config.qkv_bias)
    self.k = Dense(setup, 'BTD,DKH->BTKH', config.qkv_bias)
    self.v = Dense(setup, 'BTD,DKH->BTKH', config.qkv_bias)
    self.o = Dense(setup, 'BTNH,NHD->BTD', config.attention_bias)
    self.q_norm = RMSNorm(setup, 'H') if config.qk_norm else None
    self.k_norm = RMSNorm(setup, 'H') if config.qk_norm else None

  def __call__(
    self,
    x_BxTxD: jax.Array,
    rotation: Rotation,
    sees_BxTxS: jax.Array,
    past: Past | None,
  ) -> tuple[jax.Array, Past | None]:
    q_BxTxNxH, k_BxSxKxH, v_BxSxKxH = self.q(x_BxTxD), self.k(x_BxTxD), self.v(x_BxTxD)
    if self.q_norm is not None and self.k_norm is not None:
      q_BxTxNxH, k_BxSxKxH = self.q_norm(q_BxTxNxH), self.k_norm(k_BxSxKxH)
    q_BxTxNxH, k_BxSxKxH = rotate(q_BxTxNxH, rotation), rotate(k_BxSxKxH, rotation)
    if past is not None:
      k_BxSxKxH = jax.lax.dynamic_update_slice_in_dim(past.k, k_BxSxKxH, past.start, 1)
      v_BxSxKxH = jax.lax.dynamic_update_slice_in_dim(past.v, v_BxSxKxH, past.start, 1)
      past = Past(k_BxSxKxH, v_BxSxKxH, past.start + x_BxTxD.shape[1])
    # Padding before the first token sees nothing: its rows are finite, and unused.
    heads_BxTxNxH = jax.nn.dot_product_attention(
      q_BxTxNxH, k_BxSxKxH, v_BxSxKxH, mask=sees_BxTxS[:, None]
    )
    return self.o(heads_BxTxNxH), past


class Mlp(nnx.Module):
  """down(silu(gate(x)) * up(x)). Source: Shazeer, GLU Variants (2020)."""

  def __init__(self, setup: Setup):
    bias = setup.config.mlp_bias
    self.gate = Dense(setup, 'BTD,DF->BTF', bias)
    self.up = Dense(setup, 'BTD,DF->BTF', bias)
    self.down = Dense(setup, 'BTF,FD->BTD', bias)

  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    return self.down(jax.nn.silu(self.gate(x_BxTxD)) * self.up(x_BxTxD))


class Layer(nnx.Module):
  """Attention and MLP, each on a norm of the stream and added to it."""

  def __init__(self, setup: Setup):
    self.attn_norm = RMSNorm(setup, 'D')
    self.attn = Attention(setup)
    self.mlp_norm = RMSNorm(setup, 'D')
    self.mlp = Mlp(setup)

  def __call__(
    self,
    x_BxTxD: jax.Array,
    rotation: Rotation,
    sees_BxTxS: jax.Array,
    past: Past | None,
  ) -> tuple[jax.Array, Past | None]:
    update, past = self.attn(self.attn_norm(x_BxTxD), rotation, sees_BxTxS, past)
    x_BxTxD = x_BxTxD + update
    return x_BxTxD + self.mlp(self.mlp_norm(x_BxTxD)), past
