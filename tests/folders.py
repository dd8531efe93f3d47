"""Small Hugging Face folders for tests, their weights written by safetensors itself."""

import json
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
  'model_type': 'qwen2',
  'architectures': ['Qwen2ForCausalLM'],
  'hidden_size': 4,
  'num_hidden_layers': 2,
  'vocab_size': 6,
  'rope_theta': 10000.0,
  'tie_word_embeddings': True,
}
TOKENIZER = {'tokenizer.json': '{"version": "1.0"}', 'tokenizer_config.json': '{}'}


def tensors(seed: int = 0, vocab: int = 6, tied: bool = True) -> dict[str, np.ndarray]:
  """A two-layer, Qwen2-shaped state dict in bfloat16."""
  rng = np.random.default_rng(seed)
  shapes: dict[str, tuple[int, ...]] = {'model.embed_tokens.weight': (vocab, 4)}
  for layer in range(2):
    shapes[f'model.layers.{layer}.input_layernorm.weight'] = (4,)
    shapes[f'model.layers.{layer}.mlp.up_proj.weight'] = (8, 4)
    shapes[f'model.layers.{layer}.self_attn.q_proj.weight'] = (4, 4)
  shapes['model.norm.weight'] = (4,)
  if not tied:
    shapes['lm_head.weight'] = (vocab, 4)
  return {
    name: rng.normal(size=shape).astype(ml_dtypes.bfloat16)
    for name, shape in shapes.items()
  }


def write_folder(
  path: pathlib.Path,
  weights: Mapping[str, np.ndarray] | None = None,
  *,
  config: Mapping[str, Any] | None = None,
  n_shards: int = 1,
  files: Mapping[str, str] = TOKENIZER,
  **config_fields: Any,
) -> pathlib.Path:
  """Writes a folder; `config_fields` override single fields of CONFIG or `config`."""
  path.mkdir(parents=True)
  weights = tensors() if weights is None else weights
  config = {**(CONFIG if config is None else config), **config_fields}
  (path / 'config.json').write_text(json.dumps(config))
  for name, text in files.items():
    (path / name).write_text(text)
  if n_shards == 1:
    save_file(dict(weights), path / 'model.safetensors', {'format': 'pt'})
    return path
  weight_map = {}
  for shard, names in enumerate(np.array_split(list(weights), n_shards), 1):
    file = f'model-{shard:05}-of-{n_shards:05}.safetensors'
    save_file({name: weights[name] for name in names}, path / file, {'format': 'pt'})
    weight_map |= {str(name): file for name in names}
  write_index(path, weight_map)
  return path


def write_index(path: pathlib.Path, weight_map: Any) -> None:
  index = {'metadata': {'total_size': 0}, 'weight_map': weight_map}
  (path / 'model.safetensors.index.json').write_text(json.dumps(index))


def read_index(path: pathlib.Path) -> dict[str, str]:
  return json.loads((path / 'model.safetensors.index.json').read_text())['weight_map']


def write_raw(path: pathlib.Path, header: Any, data: bytes = b'') -> pathlib.Path:
  """A safetensors file with any header: bytes as they are, else JSON of the object."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)
  return path
