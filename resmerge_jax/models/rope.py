"""Rotary position embedding on the two halves of a head, as Hugging Face lays it out.

Source: Su et al., RoFormer (2021); the scaling is that of Llama 3.1. Letters as in
models/layers.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.models.config import DecoderConfig, Llama3Scaling


class Rotation(NamedTuple):
  """Cosine and sine per position and pair of entries, float32, [B, T, 1, H/2]."""

  cos: jax.Array
  sin: jax.Array


def frequencies(config: DecoderConfig) -> np.ndarray:
  """Radians per position of each pair of entries, float32 [H/2]."""
  exponents = np.arange(0, config.head_dim, 2) / config.head_dim
  radians = config.rope_theta**-exponents
  if config.rope_scaling:
    radians = _slowed(radians, config.rope_scaling)
  return radians.astype(np.float32)


def _slowed(radians: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
  """Short wavelengths as they are, long ones `factor` longer, between them a blend."""
  turns = scaling.original_max_position_embeddings * radians / (2 * np.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return kept * radians + (1 - kept) * radians / scaling.factor


def rotation(config: DecoderConfig, positions_BxT: jax.Array) -> Rotation:
  angles_BxTx1xP = positions_BxT[..., None, None] * jnp.asarray(frequencies(config))
  return Rotation(jnp.cos(angles_BxTx1xP), jnp.sin(angles_BxTx1xP))


def rotate(x_BxTxNxH: jax.Array, by: Rotation) -> jax.Array:
  """Queries or keys turned by their positions, in float32; the dtype stays."""
  a, b = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * by.cos - b * by.sin, b * by.cos + a * by.sin], -1)
  return turned.astype(x_BxTxNxH.dtype)
