"""Names, shapes and configuration of the model families that a group can imitate."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

from resmerge_jax.synthetic import tokenizer

_CLASSES = {
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'qwen3_moe': 'Qwen3MoeForCausalLM',
  'llama': 'LlamaForCausalLM',
}
_EXPERTS_PER_TOKEN = 8


@dataclasses.dataclass(frozen=True)
class ModelShape:
  """The facts of a published model from which every tensor's shape follows.

  `max_shard_size` is in bytes: what the model's folders are split by unless told.
  `n_experts` is that of a layer (0: dense); `intermediate` is then that of an expert.
  """

  model_type: Literal['qwen2', 'qwen3', 'qwen3_moe', 'llama']
  hidden: int
  intermediate: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  vocab: int
  tied: bool
  rope_theta: float = 1e6
  rms_eps: float = 1e-6
  max_positions: int = 32768
  max_shard_size: int = 5 * 10**9
  n_experts: int = 0

  def config(self, dtype: str) -> dict[str, Any]:
    """What the model's config.json holds, in the form in which models are published."""
    config = {
      'architectures': [_CLASSES[self.model_type]],
      'attention_dropout': 0.0,
      'bos_token_id': tokenizer.END_OF_TEXT_ID,
      'eos_token_id': tokenizer.END_OF_TEXT_ID,
      'head_dim': self.head_dim,
      'hidden_act': 'silu',
      'hidden_size': self.hidden,
      'initializer_range': 0.02,
      'intermediate_size': self.intermediate,
      'max_position_embeddings': self.max_positions,
      'model_type': self.model_type,
      'num_attention_heads': self.heads,
      'num_hidden_layers': self.layers,
      'num_key_value_heads': self.kv_heads,
      'rms_norm_eps': self.rms_eps,
      'rope_theta': self.rope_theta,
      'tie_word_embeddings': self.tied,
      'torch_dtype': dtype,
      'use_cache': True,
      'vocab_size': self.vocab,
    }
    if self.model_type == 'qwen2':
      del config['head_dim']  # Qwen2 always has hidden // heads
    else:
      config['attention_bias'] = False
    if self.model_type == 'llama':
      config['mlp_bias'] = False
    else:
      config |= {'use_sliding_window': False, 'max_window_layers': self.layers}
    if self.n_experts:
      config |= {
        'decoder_sparse_step': 1,
        'intermediate_size': _EXPERTS_PER_TOKEN * self.intermediate,
        'mlp_only_layers': [],
        'moe_intermediate_size': self.intermediate,
        'norm_topk_prob': True,
        'num_experts': self.n_experts,
        'num_experts_per_tok': min(_EXPERTS_PER_TOKEN, self.n_experts),
      }
    return dict(sorted(config.items()))

  @property
  def n_parameters(self) -> int:
    return sum(math.prod(shape) for _, shape in self.tensors())

  def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor, in the order of the forward pass."""
    yield 'model.embed_tokens.weight', (self.vocab, self.hidden)
    for layer in range(self.layers):
      for name, shape in self._layer():
        yield f'model.layers.{layer}.{name}', shape
    yield 'model.norm.weight', (self.hidden,)
    if not self.tied:
      yield 'lm_head.weight', (self.vocab, self.hidden)

  def _layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
    yield 'input_layernorm.weight', (self.hidden,)
    for name, rows in (('q_proj', queries), ('k_proj', keys), ('v_proj', keys)):
      yield f'self_attn.{name}.weight', (rows, self.hidden)
      if self.model_type == 'qwen2':
        yield f'self_attn.{name}.bias', (rows,)
    yield 'self_attn.o_proj.weight', (self.hidden, queries)
    if self.model_type.startswith('qwen3'):
      yield 'self_attn.q_norm.weight', (self.head_dim,)
      yield 'self_attn.k_norm.weight', (self.head_dim,)
    yield 'post_attention_layernorm.weight', (self.hidden,)
    if self.n_experts:
      yield 'mlp.gate.weight', (self.n_experts, self.hidden)
    for expert in range(self.n_experts):
      yield from self._ffn(f'mlp.experts.{expert}')
    if not self.n_experts:
      yield from self._ffn('mlp')

  def _ffn(self, place: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f'{place}.gate_proj.weight', (self.intermediate, self.hidden)
    yield f'{place}.up_proj.weight', (self.intermediate, self.hidden)
    yield f'{place}.down_proj.weight', (self.hidden, self.intermediate)


# Positional fields: hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, tied.
SHAPES: dict[str, ModelShape] = {
  # Under a million parameters; small shards, so that its folders have an index.
  'tiny': ModelShape('qwen2', 128, 384, 4, 4, 2, 32, 512, True, max_shard_size=600_000),
  'qwen2.5-0.5b': ModelShape('qwen2', 896, 4864, 24, 14, 2, 64, 151936, True),
  'qwen2.5-1.5b': ModelShape(
    'qwen2', 1536, 8960, 28, 12, 2, 128, 151936, True, max_positions=131072
  ),
  'qwen2.5-3b': ModelShape('qwen2', 2048, 11008, 36, 16, 2, 128, 151936, True),
  'qwen2.5-7b': ModelShape(
    'qwen2', 3584, 18944, 28, 28, 4, 128, 152064, False, max_positions=131072
  ),
  'qwen3-4b': ModelShape(
    'qwen3', 2560, 9728, 36, 32, 8, 128, 151936, True, max_positions=40960
  ),
  'qwen3-30b-a3b': ModelShape(
    'qwen3_moe',
    2048,
    768,
    48,
    32,
    4,
    128,
    151936,
    False,
    max_positions=40960,
    n_experts=128,
  ),
  'llama-3-8b': ModelShape(
    'llama', 4096, 14336, 32, 32, 8, 128, 128256, False, 5e5, 1e-5, 8192
  ),
  'llama-3-70b': ModelShape(
    'llama', 8192, 28672, 80, 64, 8, 128, 128256, False, 5e5, 1e-5, 8192
  ),
}
