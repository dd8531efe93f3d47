"""Tiny decoders of each family, without transformers."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh

from resmerge_jax.models.config import DecoderConfig, Llama3Scaling
from resmerge_jax.models.decoder import Decoder, parameters, with_arrays

CONFIG = DecoderConfig(
  model_type='qwen2',
  vocab_size=40,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=4,
  max_position_embeddings=64,
  eos_ids=(5,),
)
FULL = dataclasses.replace(  # every kind of parameter but the norms of Qwen3
  CONFIG,
  model_type='llama',
  attention_bias=True,
  mlp_bias=True,
  rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16),
)
QWEN3 = dataclasses.replace(CONFIG, model_type='qwen3', tie_word_embeddings=True)
TOKENS = np.arange(24, dtype=np.int32).reshape(2, 12) % 40


def decoder(
  config: DecoderConfig = CONFIG, scale: float = 0.3, **options: Any
) -> Decoder:
  """Random everywhere, so that a bias or a norm that is left out shows."""
  model = Decoder(config, None, **options)
  rng = np.random.default_rng(0)
  arrays = {}
  for path, param in parameters(model).items():
    around = 1.0 if path[-1] == 'scale' else 0.0
    value = around + scale * rng.standard_normal(param.shape, np.float32)
    arrays[path] = jax.numpy.asarray(value, param.dtype)
  return with_arrays(model, arrays)


@nnx.jit
def forward(model: Decoder, *args: Any) -> jax.Array:
  return model(*args)


@functools.cache
def mesh(fsdp: int = 2, tp: int = 2) -> Mesh:
  auto = (AxisType.Auto,) * 2
  devices = jax.devices()[: fsdp * tp]
  return jax.make_mesh((fsdp, tp), ('fsdp', 'tp'), axis_types=auto, devices=devices)
