"""Folders of LoRA adapters in PEFT's layout, written without PEFT."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIX = 'base_model.model.'
CONFIG: dict[str, Any] = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4}
Weights = Mapping[str, np.ndarray]


def factors(
  base: Weights, module: str, rank: int = 2, seed: int = 0, size: float = 0.1
) -> dict[str, np.ndarray]:
  """Random float32 factors of a linear module, by the names of the file."""
  rng = np.random.default_rng([seed, len(module), rank])
  rows, cols = base[f'{module}.weight'].shape
  return {
    f'{PREFIX}{module}.lora_A.weight': np.float32(rng.normal(size=(rank, cols))),
    f'{PREFIX}{module}.lora_B.weight': np.float32(size * rng.normal(size=(rows, rank))),
  }


def write(path: pathlib.Path, tensors: Weights, **fields: Any) -> pathlib.Path:
  """An adapter folder; `fields` are those of adapter_config.json that differ."""
  path.mkdir(parents=True)
  (path / 'adapter_config.json').write_text(json.dumps({**CONFIG, **fields}))
  ordered = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
  save_file(ordered, path / 'adapter_model.safetensors', {'format': 'pt'})
  return path


def merged(
  base: Weights, tensors: Weights, scale: float = 2.0
) -> dict[str, np.ndarray]:
  """The model of plain factors in float64: W_0 + scale * B A."""
  found = {name: value.astype(np.float64) for name, value in base.items()}
  for name, a_FxC in tensors.items():
    if name.endswith('.lora_A.weight'):
      b_RxF = tensors[name.replace('lora_A', 'lora_B')]
      target = name.removeprefix(PREFIX).replace('lora_A.', '')
      found[target] += scale * b_RxF.astype(np.float64) @ a_FxC.astype(np.float64)
  return found
