"""What a decoder computes, and reading it from a Hugging Face config.json, strictly.

Source: the configuration and modeling files of transformers for Qwen2, Qwen3 and Llama.
"""

import dataclasses
from typing import Any

from resmerge_jax.errors import InputError

# model_type -> the class that config.json may name in `architectures`.
FAMILIES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Slower rotation of long wavelengths, `rope_type: llama3` (models/rope.py)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A Qwen2, Qwen3 or Llama model; the names are those of config.json.

  Raises:
    InputError: values that cannot be together; all of them, by name.
  """

  model_type: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  max_position_embeddings: int
  rms_norm_eps: float = 1e-6
  rope_theta: float = 10000.0
  rope_scaling: Llama3Scaling | None = None
  tie_word_embeddings: bool = False
  attention_bias: bool = False  # of q, k, v and o; Qwen2 always has those of q, k, v
  mlp_bias: bool = False  # Llama alone can have it
  initializer_range: float = 0.02
  eos_ids: tuple[int, ...] = ()  # eos_token_id

  def __post_init__(self) -> None:
    if problems := _problems(self):
      raise InputError('model config: values that do not fit together', problems)

  @property
  def qkv_bias(self) -> bool:
    return self.attention_bias or self.model_type == 'qwen2'

  @property
  def qk_norm(self) -> bool:
    return self.model_type == 'qwen3'

  @property
  def sizes(self) -> dict[str, int]:
    """Size of each shape letter (models/layers.py)."""
    return {
      'V': self.vocab_size,
      'D': self.hidden_size,
      'F': self.intermediate_size,
      'N': self.num_attention_heads,
      'K': self.num_key_value_heads,
      'H': self.head_dim,
    }


_KINDS: dict[Any, str] = {
  int: 'a whole number above 0',
  float: 'a number above 0',
  bool: 'true or false',
}


def _problems(config: DecoderConfig) -> list[str]:
  problems = []
  if config.model_type not in FAMILIES:
    known = ', '.join(FAMILIES)
    problems.append(f'model_type {config.model_type!r}: not one of {known}')
  for field in dataclasses.fields(config):
    value, kind = getattr(config, field.name), field.type
    wrong = (
      (kind is int and (type(value) is not int or value < 1))
      or (kind is float and not (_is_number(value) and value > 0))
      or (kind is bool and type(value) is not bool)
    )
    if wrong:
      problems.append(f'{field.name} {value!r}: not {_KINDS[kind]}')
  if type(config.eos_ids) is not tuple:
    problems.append(f'eos_ids {config.eos_ids!r}: not a tuple')
  if problems:
    return problems
  if config.num_attention_heads % config.num_key_value_heads:
    problems.append(
      f'num_attention_heads {config.num_attention_heads}: not a multiple of '
      f'num_key_value_heads {config.num_key_value_heads}'
    )
  if config.head_dim % 2:
    problems.append(f'head_dim {config.head_dim}: odd, its halves are rotated')
  if config.attention_bias and config.model_type == 'qwen2':
    problems.append('attention_bias true: not an attribute of qwen2')
  if config.mlp_bias and config.model_type != 'llama':
    problems.append(f'mlp_bias true: not an attribute of {config.model_type}')
  scaling = config.rope_scaling
  if scaling and not all(_is_number(v) and v > 0 for v in vars(scaling).values()):
    problems.append(f'rope_scaling {scaling}: not numbers above 0')
  elif scaling and scaling.high_freq_factor <= scaling.low_freq_factor:
    problems.append('rope_scaling: high_freq_factor is not above low_freq_factor')
  return problems


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
