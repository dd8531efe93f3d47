"""A tiny model with two experts, as folders, and prompts of them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from resmerge_jax.models.save import hf_tensors, save_decoder
from tests.folders import TOKENIZER, write_folder
from tests.models import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1)
EXPERTS = ('math', 'code')
N = len(EXPERTS)


def write_group(path: pathlib.Path) -> list[str]:
  """Folders base, math, code; the experts' updates are a tenth of the base."""
  model = tiny.decoder(CONFIG)
  save_decoder(model, path / 'base')
  for name, text in TOKENIZER.items():
    (path / 'base' / name).write_text(text)
  weights = dict(hf_tensors(model))
  hf_config = json.loads((path / 'base/config.json').read_text())
  for i, name in enumerate(EXPERTS):
    write_folder(path / name, changed(weights, i), config=hf_config)
  return [str(path / name) for name in ('base', *EXPERTS)]


def changed(weights: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    name: w + np.float32(0.03) * rng.standard_normal(w.shape, np.float32)
    for name, w in weights.items()
  }


def prompt_ids(count: int = 6) -> list[list[np.ndarray]]:
  """Prompts of 3 to 5 tokens of each expert."""
  rng = np.random.default_rng(0)
  return [
    [rng.integers(40, size=3 + k % 3, dtype=np.int32) for k in range(count)]
    for _ in EXPERTS
  ]


def write_prompts(path: pathlib.Path) -> pathlib.Path:
  lines = [
    json.dumps({'expert': name, 'ids': ids.tolist()})
    for name, own in zip(EXPERTS, prompt_ids(), strict=True)
    for ids in own
  ]
  path.write_text('\n'.join(lines) + '\n')
  return path
