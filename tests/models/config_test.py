"""Which config.json files are understood, and every refusal by name."""

import dataclasses

import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.models.config import Llama3Scaling
from resmerge_jax.models.hf_config import config_from_hf, config_to_hf
from resmerge_jax.synthetic.shapes import SHAPES
from tests.models import tiny

LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}


def hf(kind: str = 'qwen2', **changes):
  """A config.json as Qwen2.5, Qwen3 or Llama 3 publish it; None takes a field out."""
  names = {'qwen2': 'qwen2.5-7b', 'qwen3': 'qwen3-4b', 'llama': 'llama-3-8b'}
  config = SHAPES[names[kind]].config('bfloat16')
  config |= {'rope_scaling': None, 'transformers_version': '4.51.0'} | changes
  return {name: value for name, value in config.items() if value is not None}


def without_rope(kind: str = 'qwen2', **changes):
  return hf(kind, rope_theta=None, **changes)


@pytest.mark.parametrize(
  'config',
  [
    hf(rope_theta=5e5),
    hf(rope_theta=5e5, rope_scaling={'type': 'default'}),
    without_rope(rope_parameters={'rope_type': 'default', 'rope_theta': 5e5}),
    hf(rope_theta=5e5, rope_parameters={'rope_type': 'default', 'rope_theta': 5e5}),
  ],
)
def test_rope_theta_of_old_and_new_versions(config):
  found = config_from_hf(config)
  assert (found.rope_theta, found.rope_scaling) == (5e5, None)


@pytest.mark.parametrize(
  'config',
  [
    hf('llama', rope_theta=5e5, rope_scaling=LLAMA3),
    without_rope('llama', rope_parameters=LLAMA3 | {'rope_theta': 5e5}),
  ],
)
def test_llama3_scaling_of_old_and_new_versions(config):
  found = config_from_hf(config)
  assert found.rope_theta == 5e5
  assert found.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_what_families_leave_out():
  llama = hf('llama', num_key_value_heads=None, head_dim=None, rope_theta=None)
  found = config_from_hf(llama)
  assert (found.num_key_value_heads, found.head_dim) == (32, 128)
  assert found.rope_theta == 10000.0
  assert config_from_hf(hf()).head_dim * config_from_hf(hf()).num_attention_heads > 0
  assert config_from_hf(hf(eos_token_id=[7, 8])).eos_ids == (7, 8)
  assert config_from_hf(hf()).qkv_bias
  assert not config_from_hf(hf()).attention_bias
  assert config_from_hf(hf('qwen3')).qk_norm


@pytest.mark.parametrize(
  ('change', 'text'),
  [
    ({'model_type': 'qwen3_moe'}, "model_type 'qwen3_moe': not one of llama, qwen2"),
    ({'model_type': 'gemma2'}, "model_type 'gemma2': not one of llama, qwen2, qwen3"),
    ({'model_type': None}, 'model_type None: not one of'),
    (
      {'architectures': ['Qwen2ForReward']},
      "architectures ['Qwen2ForReward']: not Qwen2",
    ),
    ({'num_experts': 8}, 'num_experts 8: a mixture of experts'),
    ({'num_local_experts': 8}, 'num_local_experts 8: a mixture of experts'),
    ({'hidden_act': 'gelu'}, "hidden_act 'gelu': only silu is computed"),
    ({'attention_dropout': 0.1}, 'attention_dropout 0.1: this decoder has no dropout'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor 0.5: whole heads are rota'),
    (
      {'quantization_config': {'bits': 4}},
      "quantization_config {'bits': 4}: quantised",
    ),
    ({'auto_map': {'AutoModel': 'm.M'}}, 'the model has code of its own'),
    ({'is_causal': False}, 'is_causal False: only causal attention is computed'),
    ({'use_mrope': True}, 'use_mrope True: positions have one part'),
    ({'logit_scale': 0.1}, 'logit_scale 0.1: not known to this decoder'),
    ({'layer_types': ['full_attention', 'sliding_attention']}, 'only full_attention'),
    (
      {'use_sliding_window': True, 'sliding_window': 64, 'max_window_layers': 1},
      'sliding_window 64: every layer sees all tokens before',
    ),
    ({'hidden_size': None}, 'hidden_size: missing'),
    ({'rms_norm_eps': None}, 'rms_norm_eps: missing'),
    ({'num_key_value_heads': None}, 'num_key_value_heads: missing'),
    ({'num_attention_heads': 5}, 'head_dim: missing, and hidden_size'),
    ({'num_key_value_heads': 3, 'head_dim': 64}, 'not a multiple of num_key_value_h'),
    ({'num_hidden_layers': '2'}, "num_hidden_layers '2': not a whole number above 0"),
    ({'tie_word_embeddings': 'yes'}, "tie_word_embeddings 'yes': not true or false"),
    ({'attention_bias': True}, 'attention_bias true: not an attribute of qwen2'),
    ({'mlp_bias': True}, 'mlp_bias true: not an attribute of qwen2'),
    ({'head_dim': 33}, 'head_dim 33: odd, its halves are rotated'),
    ({'eos_token_id': 'end'}, "eos_token_id 'end': not a token or a list of tokens"),
    ({'rope_scaling': {'type': 'yarn', 'factor': 4}}, "rope_scaling.rope_type 'yarn'"),
    ({'rope_scaling': 'llama3'}, "rope_scaling 'llama3': not an object"),
    (
      {'rope_scaling': {'rope_type': 'default', 'factor': 2}},
      'factor 2: not of default',
    ),
    ({'rope_scaling': LLAMA3 | {'factor': None}}, 'rope_scaling.factor: missing'),
    ({'rope_scaling': LLAMA3 | {'factor': -1}}, 'not numbers above 0'),
    (
      {'rope_scaling': LLAMA3 | {'low_freq_factor': 9.0}},
      'is not above low_freq_factor',
    ),
    ({'rope_parameters': {'rope_theta': 5.0}}, 'rope_parameters says 5.0'),
    (
      {'rope_parameters': {'partial_rotary_factor': 0.5}},
      'rope_parameters.partial_rotary_factor: whole heads are rotated',
    ),
    (
      {'rope_parameters': {'rope_type': 'default'}, 'rope_scaling': LLAMA3},
      'rope_parameters and rope_scaling: not the same',
    ),
  ],
)
def test_refusals_name_the_attribute(change, text):
  with pytest.raises(InputError) as caught:
    config_from_hf(hf(**change), 'model x, config.json')
  assert text in str(caught.value)
  assert str(caught.value).startswith('model x, config.json: ')


def test_all_refusals_come_at_once():
  with pytest.raises(InputError) as caught:
    config_from_hf(hf(num_experts=8, hidden_act='gelu', hidden_size=None, odd=1))
  assert len(caught.value.problems) == 4


def test_tokens_that_end_a_text_are_a_tuple():
  with pytest.raises(InputError, match=r'eos_ids \[5\]: not a tuple'):
    dataclasses.replace(tiny.CONFIG, eos_ids=[5])


def test_llama_with_a_sliding_window():
  with pytest.raises(InputError, match='sliding_window 4096: every layer'):
    config_from_hf(hf('llama', sliding_window=4096))


@pytest.mark.parametrize(
  'change',
  [
    {'use_sliding_window': False, 'sliding_window': 64, 'max_window_layers': 0},
    {'use_sliding_window': True, 'sliding_window': 64, 'max_window_layers': 99},
    {'layer_types': ['full_attention'] * 2},
    {'partial_rotary_factor': 1.0, 'num_experts': 0, 'use_mrope': False},
    {'odd': None, '_name_or_path': 'x', 'unsloth_version': '1', 'pad_token_id': 3},
  ],
)
def test_attributes_that_change_nothing(change):
  assert config_from_hf(hf(**change)) == config_from_hf(hf())


@pytest.mark.parametrize('config', [tiny.CONFIG, tiny.FULL, tiny.QWEN3])
def test_back_to_a_config_json(config):
  assert config_from_hf(config_to_hf(config, 'float32')) == config
  several = dataclasses.replace(config, eos_ids=(3, 4))
  assert config_from_hf(config_to_hf(several, 'float32')) == several
