"""The tree of Tunix' Qwen2, Qwen3 and Llama3: a saved `nnx.State`, so with `value` last."""

from resmerge_jax.trees.tree import Layout, Rule

_LAYER, _PATH = 'model.layers.{L}', 'layers/{L}'
_EXPERT = f'{_LAYER}.mlp.experts.{{E}}'

TUNIX = Layout(
  'tunix',
  (
    Rule('model.embed_tokens.weight', 'embedder/input_embedding', 'V D -> V D'),
    Rule(f'{_LAYER}.input_layernorm.weight', f'{_PATH}/input_layernorm/w', 'D -> D'),
    Rule(f'{_LAYER}.self_attn.q_proj.weight', f'{_PATH}/attn/q_proj/w', 'NH D -> D N H'),
    Rule(f'{_LAYER}.self_attn.k_proj.weight', f'{_PATH}/attn/k_proj/w', 'KH D -> D K H'),
    Rule(f'{_LAYER}.self_attn.v_proj.weight', f'{_PATH}/attn/v_proj/w', 'KH D -> D K H'),
    Rule(f'{_LAYER}.self_attn.q_proj.bias', f'{_PATH}/attn/q_bias', 'V -> V'),
    Rule(f'{_LAYER}.self_attn.k_proj.bias', f'{_PATH}/attn/k_bias', 'V -> V'),
    Rule(f'{_LAYER}.self_attn.v_proj.bias', f'{_PATH}/attn/v_bias', 'V -> V'),
    Rule(f'{_LAYER}.self_attn.o_proj.weight', f'{_PATH}/attn/o_proj/w', 'D NH -> N H D'),
    Rule(f'{_LAYER}.self_attn.q_norm.weight', f'{_PATH}/attn/q_norm/w', 'H -> H'),
    Rule(f'{_LAYER}.self_attn.k_norm.weight', f'{_PATH}/attn/k_norm/w', 'H -> H'),
    Rule(f'{_LAYER}.post_attention_layernorm.weight', f'{_PATH}/post_attention_layernorm/w', 'D -> D'),
    Rule(f'{_LAYER}.mlp.gate_proj.weight', f'{_PATH}/mlp/gate_proj/kernel', 'F D -> D F'),
    Rule(f'{_LAYER}.mlp.up_proj.weight', f'{_PATH}/mlp/up_proj/kernel', 'F D -> D F'),
    Rule(f'{_LAYER}.mlp.down_proj.weight', f'{_PATH}/mlp/down_proj/kernel', 'D F -> F D'),
    Rule(f'{_LAYER}.mlp.gate.weight', f'{_PATH}/mlp/router/kernel', 'E D -> D E'),
    Rule(f'{_EXPERT}.gate_proj.weight', f'{_PATH}/mlp/gate_proj', 'F D -> E D F'),
    Rule(f'{_EXPERT}.up_proj.weight', f'{_PATH}/mlp/up_proj', 'F D -> E D F'),
    Rule(f'{_EXPERT}.down_proj.weight', f'{_PATH}/mlp/down_proj', 'D F -> E F D'),
    Rule('model.norm.weight', 'final_norm/w', 'D -> D'),
    Rule('lm_head.weight', 'lm_head/w', 'V D -> D V'),
  ),
  frozenset({'qwen2', 'qwen3', 'qwen3_moe', 'llama'}),
  tail='value',
)  # fmt: skip
