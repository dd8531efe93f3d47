"""A small output layout for tests: two bfloat16 matrices and one float32 vector."""

import ml_dtypes
import numpy as np

from resmerge_jax.plan.layout import OutputLayout, lay_out
from resmerge_jax.types import CODES, TensorRef


def weights() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
    'b.weight': rng.normal(size=(6, 4)).astype(ml_dtypes.bfloat16),
    'a.weight': rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    'norm': rng.normal(size=(7,)).astype(np.float32),
  }


def refs(file: str = 'model.safetensors') -> list[TensorRef]:
  return [
    TensorRef(name, CODES[value.dtype], value.shape, file)
    for name, value in weights().items()
  ]


def layout(max_shard_size: int | None = None) -> OutputLayout:
  return lay_out(refs(), max_shard_size)
