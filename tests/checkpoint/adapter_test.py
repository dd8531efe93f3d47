"""LoRA adapters: their configuration, their tensors beside the base's, their factors."""

import dataclasses
import json
import math

import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.checkpoint.adapter import match_adapter
from resmerge_jax.checkpoint.adapter_config import AdapterConfig
from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.group import check_group
from resmerge_jax.checkpoint.lora import read_left, read_right
from resmerge_jax.checkpoint.reader import CheckpointReader
from resmerge_jax.errors import InputError
from tests import adapters, folders
from tests.adapters import PREFIX

UP = 'model.layers.0.mlp.up_proj'
Q = 'model.layers.1.self_attn.q_proj'
EMBED = 'model.embed_tokens'
BASE = folders.tensors()


@pytest.fixture
def base(tmp_path):
  return open_checkpoint(folders.write_folder(tmp_path / 'base', BASE))


def opened(tmp_path, tensors=None, **fields):
  tensors = adapters.factors(BASE, UP) if tensors is None else tensors
  return open_checkpoint(
    adapters.write(tmp_path / 'math', tensors, **fields), role="expert 'math'"
  )


def error_of(tmp_path, **fields):
  with pytest.raises(InputError) as caught:
    opened(tmp_path, **fields)
  return str(caught.value)


def test_a_folder(tmp_path, base):
  adapter = opened(tmp_path, base_model_name_or_path='Qwen/base')
  assert adapter.adapter == AdapterConfig(2, 4, base_name='Qwen/base')
  assert (adapter.id, adapter.config, adapter.config_name) == (
    'math', {}, 'adapter_config.json'
  )  # fmt: skip
  group = check_group(base, [adapter])
  assert group.warnings == ()
  lora = group.lora(1, f'{UP}.weight')
  assert (lora.rank, lora.scale, lora.transposed) == (2, 2.0, False)
  assert not group.stores(1, f'{UP}.weight')
  assert group.stores(0, f'{UP}.weight')
  assert group.ref(1, f'{UP}.weight') == base.tensors[f'{UP}.weight']
  assert group.lora(1, f'{Q}.weight') is None


def test_the_digest_covers_the_configuration(tmp_path):
  tensors = adapters.factors(BASE, UP)
  digests = {
    open_checkpoint(
      adapters.write(tmp_path / str(a), tensors, lora_alpha=a)
    ).header_sha256
    for a in (4, 8)
  }
  assert len(digests) == 2


@pytest.mark.parametrize(
  ('module', 'rank', 'scale'),
  [
    ('model.layers.0.mlp.up_proj', 8, 2.0),
    ('model.layers.1.mlp.up_proj', 4, 4.0),  # its path
    ('model.layers.0.self_attn.q_proj', 16, 0.25),  # the end of it; and of alpha
    ('model.layers.2.mlp.down_proj', 32, 0.5),  # a regular expression
    ('model.layers.2.mlp.xdown_proj', 8, 2.0),  # no whole part of a name
  ],
)
def test_patterns_of_rank_and_alpha(module, rank, scale):
  config = AdapterConfig(
    8,
    16,
    rank_pattern={
      'model.layers.1.mlp.up_proj': 4, 'q_proj': 16, r'layers\.[23]\.mlp\.down_proj': 32
    },
    alpha_pattern={'self_attn.q_proj': 4},
  )  # fmt: skip
  assert config.rank_of(module) == rank
  assert config.scale_of(module) == scale
  stable = dataclasses.replace(config, rank_stabilised=True)
  assert stable.scale_of(module) == pytest.approx(scale * math.sqrt(rank))


@pytest.mark.parametrize(
  'fields',
  [
    {'init_lora_weights': 'gaussian'},
    {'init_lora_weights': 'eva', 'eva_config': {'rho': 2.0}},
    {'use_dora': False, 'target_parameters': None, 'layer_replication': [], 'new': {}},
    {'loftq_config': {}, 'megatron_core': 'megatron.core', 'qalora_group_size': 16},
    {'target_modules': '.*_proj', 'lora_dropout': 0.1, 'bias': 'lora_only'},
  ],
)
def test_fields_without_effect_on_the_weights(tmp_path, fields):
  assert opened(tmp_path, **fields).adapter == AdapterConfig(2, 4)


@pytest.mark.parametrize(
  ('field', 'value', 'told'),
  [
    ('use_dora', True, 'use_dora (DoRA'),
    ('lora_bias', True, 'lora_bias (a bias of the update'),
    ('layer_replication', [[0, 2]], 'layer_replication (replicated layers'),
    ('target_parameters', ['experts.up'], 'target_parameters (parameters without'),
    ('trainable_token_indices', [1], 'trainable_token_indices (rows of the embedding'),
    ('alora_invocation_tokens', [7], 'alora_invocation_tokens (aLoRA'),
    ('megatron_config', {'a': 1}, 'megatron_config (Megatron'),
    ('use_qalora', True, 'use_qalora (QA-LoRA'),
    ('use_bdlora', {'nblocks': 2}, 'use_bdlora (BD-LoRA'),
    ('arrow_config', {'top_k': 3}, 'arrow_config (Arrow'),
    ('kasa_config', {'beta': 1}, 'kasa_config (KaSA'),
    ('monteclora_config', {'a': 1}, 'monteclora_config (MonteCLoRA'),
    ('use_tomorrow', True, 'use_tomorrow (a field that is not known here)'),
  ],
)
def test_more_than_plain_lora_is_refused(tmp_path, field, value, told):
  message = error_of(tmp_path, **{field: value})
  assert 'has fields that make it more than plain LoRA' in message
  assert f'  - {told}' in message
  assert "merge the adapter into its base with PEFT's merge_and_unload()" in message


@pytest.mark.parametrize(
  'start', ['pissa', 'pissa_niter_16', 'olora', 'corda', 'lora_ga', 'loftq']
)
def test_adapters_of_a_changed_base_are_refused(tmp_path, start):
  message = error_of(tmp_path, init_lora_weights=start)
  assert f"init_lora_weights is '{start}', which changed the base" in message
  assert 'path_initial_model_for_weight_conversion' in message


@pytest.mark.parametrize(
  ('fields', 'told'),
  [
    ({'peft_type': 'LOHA'}, "of peft_type 'LOHA', only LORA is known"),
    (
      {'init_lora_weights': 'tomorrow'},
      "init_lora_weights is 'tomorrow', which is not",
    ),
    ({'r': 0}, 'r: got 0, expected 1 or more'),
    ({'r': '8'}, "r: got '8', expected 1 or more"),
    ({'rank_pattern': {'q': 1.5}}, "rank_pattern['q']: got 1.5, expected 1 or more"),
    ({'rank_pattern': {'(': 2}}, "rank_pattern: '(' is no regular expression"),
    ({'lora_alpha': None}, 'lora_alpha: got None, expected a number'),
    ({'alpha_pattern': [1]}, 'alpha_pattern: got [1], expected a number'),
    ({'use_rslora': 'yes'}, "use_rslora: got 'yes', expected true or false"),
  ],
)
def test_bad_configurations(tmp_path, fields, told):
  assert told in error_of(tmp_path, **fields)


def test_broken_files(tmp_path):
  path = adapters.write(tmp_path / 'a', adapters.factors(BASE, UP))
  (path / 'adapter_config.json').write_text('{')
  with pytest.raises(InputError, match=r'adapter_config.json is not JSON'):
    open_checkpoint(path)
  (path / 'adapter_model.safetensors').rename(path / 'adapter_model.bin')
  with pytest.raises(InputError, match=r'pickles(.|\n)*AutoPeftModelForCausalLM'):
    open_checkpoint(path)


def problems_of(base, adapter):
  with pytest.raises(InputError) as caught:
    check_group(base, [adapter])
  assert str(caught.value).startswith('1 of 1 experts do not match base')
  return str(caught.value)


def renamed(tensors, old, new):
  return {name.replace(old, new): value for name, value in tensors.items()}


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    (
      lambda t: renamed(t, 'up_proj', 'ghost'),
      f'{PREFIX}model.layers.0.mlp.ghost: the base has no tensor '
      'model.layers.0.mlp.ghost.weight',
    ),
    (lambda t: renamed(t, PREFIX, ''), f'the name does not begin with {PREFIX}'),
    (
      lambda t: {n: x for n, x in t.items() if 'lora_A' in n},
      f'{PREFIX}{UP}: lora_A alone, expected one A and one B',
    ),
    (
      lambda t: {n: np.repeat(x, 2, 0 if 'lora_A' in n else 1) for n, x in t.items()},
      'lora_A is [4, 4], lora_B [8, 4]; adapter_config.json gives it rank 2',
    ),
    (
      lambda t: {n: x[:, :3] for n, x in t.items()},
      'lora_A is [2, 3], lora_B [8, 2]; their product does not fit [8, 4] '
      '(fan_in_fan_out is false)',
    ),
    (
      lambda t: {n: x[..., None] for n, x in t.items()},
      'lora_A is [2, 4, 1], lora_B [8, 2, 1]; their product does not fit [8, 4]',
    ),
    (
      lambda t: {n: x.astype(np.int32) for n, x in t.items()},
      'I32 and I32 factors of a BF16 tensor are not floats',
    ),
    (
      lambda t: t | {f'{PREFIX}{UP}.lora_magnitude_vector': np.ones(8)},
      f'{PREFIX}{UP}.lora_magnitude_vector: no part of a plain LoRA adapter',
    ),
    (
      lambda t: t | {f'{PREFIX}{UP}.lora_B.bias': np.ones(8)},
      f'{PREFIX}{UP}.lora_B.bias: no part of a plain LoRA adapter',
    ),
    (
      lambda t: t | {f'{PREFIX}lm_head.weight': np.ones((6, 4))},
      f'{PREFIX}lm_head.weight: the base has no tensor lm_head.weight (its config.json '
      'ties the head to the embedding)',
    ),
    (
      lambda t: t | {f'{PREFIX}{EMBED}.weight': np.ones((9, 4))},
      f'{EMBED}.weight in adapter_model.safetensors is F64 [9, 4], the base has BF16',
    ),
  ],
)  # fmt: skip
def test_tensors_that_do_not_fit_the_base(tmp_path, base, change, told):
  adapter = opened(tmp_path, change(adapters.factors(BASE, UP)))
  assert told in problems_of(base, adapter)


def test_an_adapter_is_no_base(tmp_path, base):
  with pytest.raises(InputError, match="base 'math': a LoRA adapter, not a model"):
    check_group(opened(tmp_path), [base])


def test_whole_tensors_and_warnings(tmp_path, base):
  embedding = {f'{PREFIX}{EMBED}.base_layer.weight': BASE[f'{EMBED}.weight']}
  adapter = opened(
    tmp_path,
    {**adapters.factors(BASE, UP), **embedding},
    base_model_name_or_path='Qwen/Other',
  )
  group = check_group(base, [adapter])
  assert group.stores(1, f'{EMBED}.weight')
  assert group.ref(1, f'{EMBED}.weight').name == f'{PREFIX}{EMBED}.base_layer.weight'
  other, tied = group.warnings
  assert other.startswith(
    "expert 'math': its base is called 'Qwen/Other', the base here 'base';"
  )
  assert f'it changes {EMBED}.weight, to which the base ties its head' in tied


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('kind', ['linear', 'fan_in_fan_out', 'embedding'])
def test_factors_as_they_are_read(tmp_path, base, kind, dtype):
  """Any block of rows of scale * left, and right, in the orientation of the base."""
  module = EMBED if kind == 'embedding' else UP
  rows, cols = BASE[f'{module}.weight'].shape
  rng = np.random.default_rng(0)
  left_RxF, right_FxC = (
    rng.normal(size=shape).astype(dtype) for shape in ((rows, 2), (2, cols))
  )
  a, b = (left_RxF.T, right_FxC.T) if kind != 'linear' else (right_FxC, left_RxF)
  names = ('lora_embedding_A', 'lora_embedding_B') if kind == 'embedding' else (
    'lora_A.weight', 'lora_B.weight'
  )  # fmt: skip
  pair = zip(names, (a, b), strict=True)
  tensors = {f'{PREFIX}{module}.{n}': x for n, x in pair}
  adapter = opened(tmp_path, tensors, fan_in_fan_out=kind == 'fan_in_fan_out')
  matched = match_adapter(base, adapter)
  assert matched.problems == ()
  lora = matched.loras[f'{module}.weight']
  with CheckpointReader(adapter) as reader:
    got_FxC = np.empty((2, cols), np.float32)
    read_right(reader, lora, got_FxC)
    np.testing.assert_array_equal(got_FxC, np.float32(right_FxC))
    for start, stop in ((0, rows), (1, 4), (2, 2)):
      got_RxF = np.empty((stop - start, 2), np.float32)
      read_left(reader, lora, start, stop, got_RxF)
      np.testing.assert_array_equal(got_RxF, 2 * np.float32(left_RxF[start:stop]))


def test_malformed_json_is_told_like_any_other(tmp_path):
  path = adapters.write(tmp_path / 'a', adapters.factors(BASE, UP))
  (path / 'adapter_config.json').write_text(json.dumps([1]))
  with pytest.raises(InputError, match='is a JSON list, not an object'):
    open_checkpoint(path)
