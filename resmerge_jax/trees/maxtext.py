"""The trees of MaxText for Qwen2 and Qwen3: one leaf per layer, or layers scanned.

Scanned, a leaf holds all layers on its axis 1, and experts come before layers.
"""

from resmerge_jax.trees.tree import Layout, Rule

_LAYER, _TOP = 'model.layers.{L}', 'params/params'
_EXPERT = f'{_LAYER}.mlp.experts.{{E}}'
_TYPES = frozenset({'qwen2', 'qwen3', 'qwen3_moe'})
_WHY_NOT = {
  'llama': 'MaxText divides the queries of Llama by the square root of head_dim, which '
  'rounds them, and keeps their heads in another order; its own converter does that from '
  'the safetensors output'
}
# Path below the layer, and the dimensions of unscanned leaves.
_IN_LAYER = (
  ('input_layernorm.weight', 'pre_self_attention_layer_norm/scale', 'D -> D'),
  ('self_attn.q_proj.weight', 'self_attention/query/kernel', 'NH D -> D N H'),
  ('self_attn.k_proj.weight', 'self_attention/key/kernel', 'KH D -> D K H'),
  ('self_attn.v_proj.weight', 'self_attention/value/kernel', 'KH D -> D K H'),
  ('self_attn.q_proj.bias', 'self_attention/query/bias', 'NH -> N H'),
  ('self_attn.k_proj.bias', 'self_attention/key/bias', 'KH -> K H'),
  ('self_attn.v_proj.bias', 'self_attention/value/bias', 'KH -> K H'),
  ('self_attn.o_proj.weight', 'self_attention/out/kernel', 'D NH -> N H D'),
  ('self_attn.q_norm.weight', 'self_attention/query_norm/scale', 'H -> H'),
  ('self_attn.k_norm.weight', 'self_attention/key_norm/scale', 'H -> H'),
  ('post_attention_layernorm.weight', 'post_self_attention_layer_norm/scale', 'D -> D'),
  ('mlp.gate_proj.weight', 'mlp/wi_0/kernel', 'F D -> D F'),
  ('mlp.up_proj.weight', 'mlp/wi_1/kernel', 'F D -> D F'),
  ('mlp.down_proj.weight', 'mlp/wo/kernel', 'D F -> F D'),
  ('mlp.gate.weight', 'moe_block/gate/kernel', 'E D -> D E'),
  ('mlp.experts.{E}.gate_proj.weight', 'moe_block/wi_0', 'F D -> E D F'),
  ('mlp.experts.{E}.up_proj.weight', 'moe_block/wi_1', 'F D -> E D F'),
  ('mlp.experts.{E}.down_proj.weight', 'moe_block/wo', 'D F -> E F D'),
)
_OUTSIDE = (
  Rule('model.embed_tokens.weight', f'{_TOP}/token_embedder/embedding', 'V D -> V D'),
  Rule('model.norm.weight', f'{_TOP}/decoder/decoder_norm/scale', 'D -> D'),
  Rule('lm_head.weight', f'{_TOP}/decoder/logits_dense/kernel', 'V D -> D V'),
)


def _scanned(how: str) -> str:
  """The layers become axis 1 of the leaf."""
  stored, _, axes = how.partition(' -> ')
  first, *rest = axes.split()
  return f'{stored} -> {" ".join([first, "L", *rest])}'


MAXTEXT = Layout(
  'maxtext',
  (
    *_OUTSIDE,
    *(
      Rule(f'{_LAYER}.{name}', f'{_TOP}/decoder/layers_{{L}}/{path}', how)
      for name, path, how in _IN_LAYER
    ),
  ),
  _TYPES,
  metadata={'scan_layers': False},
  why_not=_WHY_NOT,
)
MAXTEXT_SCANNED = Layout(
  'maxtext_scanned',
  (
    *_OUTSIDE,
    *(
      Rule(f'{_LAYER}.{name}', f'{_TOP}/decoder/layers/{path}', _scanned(how))
      for name, path, how in _IN_LAYER
    ),
  ),
  _TYPES,
  metadata={'scan_layers': True},
  why_not=_WHY_NOT,
)
