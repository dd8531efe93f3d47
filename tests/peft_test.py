"""PEFT in the loop: merging its adapters equals merging the models it makes of them."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

pytest.importorskip('peft')

import peft
import torch
import transformers

from resmerge_jax.checkpoint import adapter_config
from resmerge_jax.errors import InputError
from resmerge_jax.parameters import make_method
from resmerge_jax.pipeline.prepare import prepare
from tests import groups, peft_adapters
from tests.peft_adapters import ALL, ATTENTION, GPT2, LLAMA, QWEN2

# What PEFT and transformers say of each other, of embeddings saved and of tied ones.
pytestmark = [
  pytest.mark.filterwarnings(f'ignore:::{module}')
  for module in ('peft', 'transformers')
]

EXPERTS = {
  'rank_pattern': (
    QWEN2,
    {
      'one': {'r': 4, 'rank_pattern': {'q_proj': 12, r'layers\.1\.mlp\.up_proj': 6}},
      'two': {
        'lora_alpha': 3,
        'alpha_pattern': {'mlp.down_proj': 40, 'model.layers.0.self_attn.v_proj': 1},
      },
    },
  ),
  'rslora': (
    QWEN2,
    {
      'one': {'use_rslora': True, 'rank_pattern': {'k_proj': 3}},
      'two': {'target_modules': ATTENTION, 'init_lora_weights': 'gaussian'},
    },
  ),
  'modules_to_save': (
    LLAMA,
    {
      'one': {'modules_to_save': ['lm_head', 'norm', 'embed_tokens']},
      'two': {'target_modules': 'all-linear', 'exclude_modules': ['gate_proj']},
    },
  ),
  'fan_in_fan_out': (
    GPT2,
    {
      'one': {'target_modules': ['c_attn', 'c_proj', 'c_fc'], 'fan_in_fan_out': True},
      'two': {'target_modules': ['c_attn'], 'fan_in_fan_out': True, 'r': 5},
    },
  ),
  'embedding': (
    LLAMA,
    {
      'one': {'target_modules': ['embed_tokens', 'lm_head', 'q_proj']},
      'two': {'target_modules': ['embed_tokens', 'o_proj'], 'r': 3},
    },
  ),
  'bias': (QWEN2, {'one': {'bias': 'lora_only'}, 'two': {'bias': 'all'}}),
}


@pytest.mark.parametrize(
  ('case', 'method'),
  [*((case, 'task_arithmetic') for case in EXPERTS), ('rank_pattern', 'resmerge')],
)
def test_adapters_equal_the_models_that_peft_merges(case, method, pairs, tmp_path):
  adapters, models = pairs[case]
  settings = {'output_dtype': 'float32', 'method': make_method(method, None)}
  got, want = (
    groups.load(groups.merge(group, tmp_path / str(i), **settings).output)
    for i, group in enumerate((adapters, models))
  )
  base, changed = groups.load(adapters.base), 0
  assert got.keys() == want.keys()
  for name, value in want.items():
    # PEFT rounds W_0 + B A to float32: up to 1e-5 of an update a hundred times smaller.
    update = np.linalg.norm(value - base[name].astype(np.float32))
    assert np.linalg.norm(got[name] - value) <= 3e-5 * update, name
    changed += update > 0
  assert changed >= 4


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  return {
    case: peft_adapters.write_groups(tmp_path_factory.mktemp(case), *of_case)
    for case, of_case in EXPERTS.items()
  }


def prepared(group, tmp_path):
  return prepare(groups.config_of(group, tmp_path / 'never'))


def saved(path, base, **fields) -> groups.Group:
  adapter, _ = peft_adapters.write_expert(path, 'one', base, 1, **fields)
  return groups.Group(base, (adapter,))


def test_dora_is_refused(pairs, tmp_path):
  group = saved(tmp_path, pairs['rslora'][0].base, use_dora=True)
  with pytest.raises(InputError, match=r'plain LoRA\n  - use_dora \(DoRA'):
    prepared(group, tmp_path)


def test_a_tied_head_cannot_have_an_update_of_its_own(pairs, tmp_path):
  group = saved(tmp_path, pairs['rslora'][0].base, target_modules=['lm_head', 'q_proj'])
  with pytest.raises(InputError, match=r'the base has no tensor lm_head.weight \(its'):
    prepared(group, tmp_path)


def test_pissa_is_refused_until_it_is_converted(pairs, tmp_path):
  base = pairs['rslora'][0].base
  model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
  config = peft.LoraConfig(init_lora_weights='pissa', target_modules=ALL, r=4)
  model = peft.get_peft_model(model, config)
  start = tmp_path / 'start'
  model.peft_config['default'].init_lora_weights = True  # as PEFT's documentation does
  model.save_pretrained(start)
  model.peft_config['default'].init_lora_weights = 'pissa'
  with torch.no_grad():
    for name, value in model.named_parameters():
      if 'lora_' in name:
        value += 0.01 * torch.randn_like(value)
  model.save_pretrained(tmp_path / 'raw')
  with pytest.raises(InputError, match="init_lora_weights is 'pissa'"):
    prepared(groups.Group(base, (tmp_path / 'raw',)), tmp_path)
  model.save_pretrained(
    tmp_path / 'converted', path_initial_model_for_weight_conversion=start
  )
  group = groups.Group(base, (tmp_path / 'converted',))
  assert prepared(group, tmp_path).group.loras[1]['model.layers.0.mlp.up_proj.weight']
  merged = groups.merge(
    group, tmp_path / 'out', method=groups.MEAN, output_dtype='float32'
  )
  want = model.merge_and_unload().state_dict()
  for name, value in groups.load(merged.output).items():
    # float32 of a decomposition and its reversal, on weights of size 1e-2
    np.testing.assert_allclose(value, want[name].numpy(), atol=1e-6, err_msg=name)


def test_another_base_is_warned_of(pairs, tmp_path):
  adapters, _ = pairs['rslora']
  assert not any(
    'its base is called' in w for w in prepared(adapters, tmp_path).plan.warnings
  )
  moved = tmp_path / 'other'
  moved.symlink_to(adapters.base)
  warnings = prepared(adapters._replace(base=moved), tmp_path).plan.warnings
  assert sum("the base here 'other'" in w for w in warnings) == 2


def test_the_documentation(pairs, tmp_path, monkeypatch, capsys):
  """The snippet of docs/lora.md, where the adapters lie as it says."""
  page = pathlib.Path(__file__).parents[1] / 'docs' / 'lora.md'
  (snippet,) = re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL)
  (tmp_path / 'adapters').mkdir()
  adapters, _ = pairs['rslora']
  for name, path in zip(('math', 'code'), adapters.experts, strict=True):
    (tmp_path / 'adapters' / name).symlink_to(path)
  (tmp_path / 'base').symlink_to(adapters.base)
  monkeypatch.chdir(tmp_path)
  exec(snippet)
  assert groups.load(tmp_path / 'merged').keys() == groups.load(adapters.base).keys()
  assert capsys.readouterr().out.startswith('base ')


def test_every_field_of_a_configuration_is_known():
  """Fields that a new PEFT adds are refused where they are set: this tells of them."""
  fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
  assert fields <= adapter_config._BENIGN | adapter_config._REFUSED.keys()
