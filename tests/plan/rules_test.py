"""The table of rules on names of real models; families; batches of matrices."""

import pathlib
import types

import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.plan.rules import (
  RELEASE_RULES,
  SCOPES,
  Rule,
  assign,
  family_of,
  layer_count,
  layer_counts,
  rules_from,
)
from resmerge_jax.types import TensorRef, find

AT = 'model.layers.3.'
ROUTERS = (  # name, shape, of a model
  ('mlp.gate.weight', (8, 4)),  # Qwen3-MoE, DeepSeek
  ('mlp.gate.e_score_correction_bias', (8,)),
  ('mlp.shared_expert_gate.weight', (1, 4)),  # Qwen2-MoE
  ('block_sparse_moe.gate.weight', (8, 4)),  # Mixtral
  ('block_sparse_moe.router.layer.weight', (8, 4)),  # GraniteMoE
  ('feed_forward.router.weight', (8, 4)),  # Llama 4
  ('mlp.router.weight', (8, 4)),  # gpt-oss
  ('mlp.router.bias', (8,)),
)
EXPERTS = (
  'mlp.experts.0.gate_proj.weight',
  'mlp.shared_expert.gate_proj.weight',
  'mlp.shared_experts.up_proj.weight',
  'block_sparse_moe.experts.7.w1.weight',
  'feed_forward.shared_expert.down_proj.weight',
)
FUSED = (
  'mlp.experts.gate_up_proj',
  'feed_forward.experts.down_proj',
  'block_sparse_moe.input_linear.weight',
)
DENSE = {  # names of the release's table, which MoE rules must not touch
  'model.embed_tokens.weight': ('embed_lm_head', 'task_arithmetic'),
  f'{AT}mlp.gate_proj.weight': ('ffn', 'method'),
  f'{AT}self_attn.q_proj.weight': ('attention', 'method'),
  f'{AT}altup.modality_router.weight': ('other', 'method'),
  f'{AT}attn.gate.weight': ('attention', 'method'),
  f'{AT}router_scale.weight': ('other', 'method'),
  'score.weight': ('other', 'method'),
}


def rule_of(name: str, shape: tuple[int, ...], scope: str = 'hidden') -> Rule:
  return assign([TensorRef(name, 'BF16', shape)], SCOPES[scope])[name]


@pytest.mark.parametrize(('name', 'shape'), ROUTERS)
def test_routers(name, shape):
  assert family_of(AT + name) == 'router'
  for scope in ('hidden', 'matrices'):
    rule = rule_of(AT + name, shape, scope)
    assert rule.action == 'task_arithmetic'
    assert rule.why == 'router: rows compete for tokens, one per expert'
  assert rule_of(AT + name, shape, 'all').action == 'method'
  assert Rule('', 'method', '', family='router').covers(
    TensorRef(AT + name, 'BF16', shape)
  )


@pytest.mark.parametrize('name', EXPERTS)
def test_experts_of_a_layer_are_matrices_like_any(name):
  rule = rule_of(AT + name, (8, 4))
  assert (family_of(AT + name), rule.action, rule.batch) == ('ffn', 'method', False)
  assert rule.why == 'matrix'


@pytest.mark.parametrize('name', FUSED)
@pytest.mark.parametrize('scope', SCOPES)
def test_fused_experts_are_batches(name, scope):
  rule = rule_of(AT + name, (8, 6, 4), scope)
  assert (family_of(AT + name), rule.action, rule.batch) == ('ffn', 'method', True)
  assert rule.why == 'fused experts: each a matrix'
  empty = TensorRef(AT + name, 'BF16', (8, 0, 4))
  assert rule.matrices(empty) == (empty.name,)


def test_biases_of_fused_experts():
  name = f'{AT}mlp.experts.gate_up_proj_bias'
  assert rule_of(name, (8, 6)).action == 'task_arithmetic'
  assert rule_of(name, (8, 6), 'matrices').why == 'biases of fused experts'
  rule = rule_of(name, (8, 6), 'all')
  assert (rule.action, rule.batch) == ('method', True)
  assert rule_of(f'{AT}mlp.experts.0.up_proj.bias', (6,)).why == 'vector'


def test_convolutions_are_no_batches():
  name = f'{AT}mamba.conv1d.weight'
  assert rule_of(name, (8, 1, 4)).why == 'neither vector nor matrix'
  assert not rule_of(name, (8, 1, 4), 'all').batch


@pytest.mark.parametrize(('name', 'expected'), DENSE.items())
def test_dense_models_have_the_rules_of_the_release(name, expected):
  assert (family_of(name), rule_of(name, (8, 4)).action) == expected


@pytest.mark.parametrize('name', ['rotary_emb.inv_freq', 'model.position_ids'])
def test_buffers_are_copied(name):
  for scope in SCOPES:
    rule = rule_of(name, (8,), scope)
    assert (rule.action, rule.why[:6]) == ('base', 'buffer')


def test_parts_lie_where_their_tensor_does():
  stacked = TensorRef('experts.up', 'BF16', (3, 6, 4), 'a.safetensors', 1000)
  tensors = {'experts.up': stacked, 'x[0]': TensorRef('x[0]', 'F32', (2,))}
  rule = rule_of('experts.up', stacked.shape)
  assert rule.matrices(stacked) == ('experts.up[0]', 'experts.up[1]', 'experts.up[2]')
  assert stacked.part(2) == TensorRef(
    'experts.up[2]', 'BF16', (6, 4), 'a.safetensors', 1000 + 2 * 48
  )
  assert find(tensors, 'experts.up[2]') == (stacked, 2)
  assert (stacked.first_row(2), stacked.first_row(None)) == (12, 0)
  assert find(tensors, 'x[0]') == (tensors['x[0]'], None)  # a name like any
  biases = TensorRef('experts.up_bias', 'F32', (3, 6), '', 0)
  assert (biases.part(1).shape, biases.part(1).start) == ((6,), 24)
  assert biases.first_row(1) == 1


@pytest.mark.parametrize(
  'fields',
  [
    {'action': 'task_arithmetic', 'ndim': 3},
    {'action': 'method'},
    {'action': 'method', 'ndim': (1, 2)},
  ],
)
def test_batches_must_have_an_axis_that_counts(fields):
  with pytest.raises(InputError) as caught:
    Rule('experts', why='', batch=True, **fields)
  assert str(caught.value) == (
    "rule 'experts': batch needs action and ndim that suit it\n"
    "What to do: set action='method', and ndim=3 (matrices) or ndim=2 (vectors)"
  )


def test_the_table_says_why():
  assert all(rule.why for table in SCOPES.values() for rule in table)
  assert SCOPES['hidden'] is RELEASE_RULES


@pytest.mark.parametrize(
  ('page', 'name', 'shape', 'action'),
  [
    ('moe', 'mlp.router.weight', (8, 4), 'method'),
    ('moe', 'mlp.router.bias', (8,), 'base'),
    ('moe', 'mlp.experts.down_proj', (8, 6, 4), 'method'),
    ('moe', 'mlp.down_proj.weight', (6, 4), 'method'),
    ('moe', 'input_layernorm.weight', (4,), 'task_arithmetic'),
    ('mismatch', 'visual.blocks.0.attn.qkv.weight', (8, 4), 'base'),
    ('mismatch', 'self_attn.q_proj.weight', (8, 4), 'method'),
    ('mismatch', 'self_attn.q_norm.weight', (8,), 'task_arithmetic'),
  ],
)
def test_tables_of_the_docs(page, name, shape, action):
  text = (pathlib.Path(__file__).parents[2] / f'docs/{page}.md').read_text()
  config = types.SimpleNamespace()
  exec(text.partition('```python\n')[2].partition('```')[0], {'config': config})
  tensor = TensorRef(name, 'BF16', shape)
  rule = assign([tensor], rules_from(config.rules))[name]
  assert rule.action == action
  assert rule.splits(tensor) == (len(shape) == 3)


def test_a_vision_tower_counts_its_own_layers():
  language, vision = 'model.language_model.layers.{}.mlp.up', 'visual.blocks.{}.mlp'
  names = (*map(language.format, range(3)), *map(vision.format, range(5)), 'h.0.w')
  counts = layer_counts((*names, 'model.norm.weight'))
  found = [layer_count(counts, name) for name in (*names, 'model.norm.weight')]
  assert found == [3] * 3 + [5] * 5 + [1, 5]
