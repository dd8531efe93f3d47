"""LoRA adapters made by PEFT on tiny models, and the same experts merged by PEFT.

Import only where PEFT is installed.
"""

import pathlib
from typing import Any

import peft
import torch
import transformers

from tests import groups

SIZES: dict[str, Any] = {
  'vocab_size': 96,
  'hidden_size': 64,
  'intermediate_size': 80,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
}
QWEN2 = transformers.Qwen2Config(tie_word_embeddings=True, **SIZES)
LLAMA = transformers.LlamaConfig(tie_word_embeddings=False, **SIZES)
GPT2 = transformers.GPT2Config(
  vocab_size=96, n_embd=32, n_layer=2, n_head=2, n_positions=32
)
ATTENTION = ['q_proj', 'k_proj', 'v_proj', 'o_proj']
ALL = [*ATTENTION, 'gate_proj', 'up_proj', 'down_proj']


def write_base(path: pathlib.Path, config: Any) -> pathlib.Path:
  """A random bfloat16 model."""
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
  model.save_pretrained(path)
  return path


def write_expert(
  path: pathlib.Path, name: str, base: pathlib.Path, seed: int, **fields: Any
) -> tuple[pathlib.Path, pathlib.Path]:
  """An adapter with random factors in path/adapters, merged in float32 in path/models.

  `fields`: of LoraConfig.
  """
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
  fields = {'r': 8, 'lora_alpha': 16, 'target_modules': ALL, **fields}
  model = peft.get_peft_model(model, peft.LoraConfig(**fields))
  for parameter, value in model.named_parameters():
    if value.requires_grad:
      is_factor = 'lora_' in parameter
      value.data = 0.05 * torch.randn_like(value) + (0 if is_factor else value.data)
  adapter, merged = (path / kind / name for kind in ('adapters', 'models'))
  model.save_pretrained(adapter)
  model.merge_and_unload().save_pretrained(merged)
  return adapter, merged


def write_groups(
  path: pathlib.Path, config: Any, experts: dict[str, dict[str, Any]]
) -> tuple[groups.Group, groups.Group]:
  """One base, with adapters and with the models that PEFT makes of them."""
  base = write_base(path / 'base', config)
  pairs = [
    write_expert(path, name, base, seed, **fields)
    for seed, (name, fields) in enumerate(experts.items(), 1)
  ]
  adapters, merged = zip(*pairs, strict=True)
  return groups.Group(base, adapters), groups.Group(base, merged)
