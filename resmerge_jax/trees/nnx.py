"""The tree of this package's own Flax NNX decoder, as a pure dictionary."""

from resmerge_jax.trees.tree import Layout, Rule

_LAYER, _PATH = 'model.layers.{L}', 'layers/{L}'

NNX = Layout(
  'nnx',
  (
    Rule('model.embed_tokens.weight', 'embed/embedding', 'V D -> V D'),
    Rule(f'{_LAYER}.input_layernorm.weight', f'{_PATH}/attn_norm/scale', 'D -> D'),
    Rule(f'{_LAYER}.self_attn.q_proj.weight', f'{_PATH}/attn/q/kernel', 'NH D -> D N H'),
    Rule(f'{_LAYER}.self_attn.q_proj.bias', f'{_PATH}/attn/q/bias', 'NH -> N H'),
    Rule(f'{_LAYER}.self_attn.k_proj.weight', f'{_PATH}/attn/k/kernel', 'KH D -> D K H'),
    Rule(f'{_LAYER}.self_attn.k_proj.bias', f'{_PATH}/attn/k/bias', 'KH -> K H'),
    Rule(f'{_LAYER}.self_attn.v_proj.weight', f'{_PATH}/attn/v/kernel', 'KH D -> D K H'),
    Rule(f'{_LAYER}.self_attn.v_proj.bias', f'{_PATH}/attn/v/bias', 'KH -> K H'),
    Rule(f'{_LAYER}.self_attn.o_proj.weight', f'{_PATH}/attn/o/kernel', 'D NH -> N H D'),
    Rule(f'{_LAYER}.self_attn.o_proj.bias', f'{_PATH}/attn/o/bias', 'D -> D'),
    Rule(f'{_LAYER}.self_attn.q_norm.weight', f'{_PATH}/attn/q_norm/scale', 'H -> H'),
    Rule(f'{_LAYER}.self_attn.k_norm.weight', f'{_PATH}/attn/k_norm/scale', 'H -> H'),
    Rule(f'{_LAYER}.post_attention_layernorm.weight', f'{_PATH}/mlp_norm/scale', 'D -> D'),
    Rule(f'{_LAYER}.mlp.gate_proj.weight', f'{_PATH}/mlp/gate/kernel', 'F D -> D F'),
    Rule(f'{_LAYER}.mlp.gate_proj.bias', f'{_PATH}/mlp/gate/bias', 'F -> F'),
    Rule(f'{_LAYER}.mlp.up_proj.weight', f'{_PATH}/mlp/up/kernel', 'F D -> D F'),
    Rule(f'{_LAYER}.mlp.up_proj.bias', f'{_PATH}/mlp/up/bias', 'F -> F'),
    Rule(f'{_LAYER}.mlp.down_proj.weight', f'{_PATH}/mlp/down/kernel', 'D F -> F D'),
    Rule(f'{_LAYER}.mlp.down_proj.bias', f'{_PATH}/mlp/down/bias', 'D -> D'),
    Rule('model.norm.weight', 'final_norm/scale', 'D -> D'),
    Rule('lm_head.weight', 'lm_head/kernel', 'V D -> D V'),
  ),
  frozenset({'qwen2', 'qwen3', 'llama'}),
)  # fmt: skip
