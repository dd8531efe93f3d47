"""A small base, and LoRA adapters of it of several ranks."""

import pathlib

import ml_dtypes
import numpy as np

from tests import adapters, folders, groups

ROWS, COLS, LAYERS = 80, 64, 2  # short sides whose models solve fast
UP, Q = 'model.layers.{}.mlp.up_proj', 'model.layers.{}.self_attn.q_proj'
EMBED = 'model.embed_tokens'
FLOAT32 = {'output_dtype': 'float32'}


def weights(dtype=ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  shapes = {f'{EMBED}.weight': (300, COLS), 'model.norm.weight': (COLS,)}
  for layer in range(LAYERS):
    shapes[f'{UP.format(layer)}.weight'] = (ROWS, COLS)
    shapes[f'{Q.format(layer)}.weight'] = (COLS, COLS)
  return {n: rng.normal(size=shape).astype(dtype) for n, shape in shapes.items()}


BASE = weights()


def lora(seed: int, rank: int = 6, layers=range(LAYERS), size: float = 0.02):
  """Factors of two modules in each of `layers`."""
  found = {}
  for layer in layers:
    for module in (UP, Q):
      found |= adapters.factors(BASE, module.format(layer), rank, seed, size)
  return found


EXPERTS = {'e0': lora(1), 'e1': lora(2, 9, [1]), 'e2': lora(3)}
RANKS = {'e0': 6, 'e1': 9, 'e2': 6}


def float32(tensors):
  return {name: value.astype(np.float32) for name, value in tensors.items()}


def write(path, id, **fields):
  rank = RANKS[id]
  return adapters.write(path, EXPERTS[id], r=rank, lora_alpha=2 * rank, **fields)


def write_group(path: pathlib.Path) -> groups.Group:
  base = folders.write_folder(path / 'base', BASE)
  return groups.Group(base, tuple(write(path / id, id) for id in EXPERTS))
