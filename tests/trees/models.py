"""Small models with the names and shapes of real ones, and their trees by hand."""

from typing import Any

import ml_dtypes
import numpy as np

D, F, V, N, K, H, L, E = 12, 10, 14, 4, 2, 6, 3, 2
CONFIG: dict[str, Any] = {
  'model_type': 'qwen2',
  'hidden_size': D,
  'num_attention_heads': N,
  'num_key_value_heads': K,
  'num_hidden_layers': L,
  'head_dim': H,
  'vocab_size': V,
  'tie_word_embeddings': False,
  'intermediate_size': F,
  'hidden_act': 'silu',
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-6,
  'rope_theta': 10000.0,
}
KINDS = ('qwen2', 'qwen3', 'qwen3_moe', 'llama')


def config(kind: str) -> dict[str, Any]:
  return {**CONFIG, 'model_type': kind}


def tensors(kind: str, dtype: Any = ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
  """A state dict of one of KINDS, all numbers different."""
  shapes: dict[str, tuple[int, ...]] = {'model.embed_tokens.weight': (V, D)}
  for i in range(L):
    at = f'model.layers.{i}'
    shapes |= {
      f'{at}.input_layernorm.weight': (D,),
      f'{at}.self_attn.q_proj.weight': (N * H, D),
      f'{at}.self_attn.k_proj.weight': (K * H, D),
      f'{at}.self_attn.v_proj.weight': (K * H, D),
      f'{at}.self_attn.o_proj.weight': (D, N * H),
      f'{at}.post_attention_layernorm.weight': (D,),
    }
    if kind == 'qwen2':
      for name, heads in (('q', N), ('k', K), ('v', K)):
        shapes[f'{at}.self_attn.{name}_proj.bias'] = (heads * H,)
    if kind.startswith('qwen3'):
      shapes |= {f'{at}.self_attn.{name}_norm.weight': (H,) for name in 'qk'}
    mlps = [f'{at}.mlp']
    if kind == 'qwen3_moe':
      shapes[f'{at}.mlp.gate.weight'] = (E, D)
      mlps = [f'{at}.mlp.experts.{e}' for e in range(E)]
    for mlp in mlps:
      shapes |= {
        f'{mlp}.gate_proj.weight': (F, D),
        f'{mlp}.up_proj.weight': (F, D),
        f'{mlp}.down_proj.weight': (D, F),
      }
  shapes |= {'model.norm.weight': (D,), 'lm_head.weight': (V, D)}
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def layer(tensors: dict[str, np.ndarray], i: int, name: str) -> np.ndarray:
  return tensors[f'model.layers.{i}.{name}.weight']
