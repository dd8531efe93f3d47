"""Mixtures of experts, end to end: transformers writes them, we merge, it loads them."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers

import resmerge_jax
from resmerge_jax.plan.rules import RELEASE_RULES
from resmerge_jax.plan.step_sizes import PROCESS_BYTES
from tests import groups, launches, resumes, several
from tests.clients_test import load

N, LAYERS = 3, 2  # experts of a layer
# Square and small, so that few programs are compiled.
SIZES: dict[str, Any] = {
  'vocab_size': 32,
  'hidden_size': 16,
  'num_hidden_layers': LAYERS,
  'num_attention_heads': 2,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': None,
  'num_experts_per_tok': 2,
}
SPARSE = {'num_experts': N, 'moe_intermediate_size': 16, 'intermediate_size': 16}
CONFIGS = {
  'qwen3_moe': transformers.Qwen3MoeConfig(head_dim=8, **SPARSE, **SIZES),
  'qwen2_moe': transformers.Qwen2MoeConfig(
    shared_expert_intermediate_size=16, **SPARSE, **SIZES
  ),
  'mixtral': transformers.MixtralConfig(
    num_local_experts=N, intermediate_size=16, head_dim=8, **SIZES
  ),
  'gpt_oss': transformers.GptOssConfig(
    num_local_experts=N,
    intermediate_size=16,
    head_dim=8,
    layer_types=['full_attention'] * LAYERS,
    **SIZES,
  ),
}
UP, DOWN = (f'model.layers.0.mlp.experts.{n}' for n in ('gate_up_proj', 'down_proj'))


class Saved(NamedTuple):
  """The same group as transformers saves it (an expert a tensor), and as it holds it."""

  apart: groups.Group
  fused: groups.Group


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> dict[str, Saved]:
  return {name: save(tmp_path_factory.mktemp(name), name) for name in CONFIGS}


def save(path: pathlib.Path, name: str) -> Saved:
  """A random base and two experts near it, in bfloat16."""
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
  model = model.to(torch.bfloat16)
  for value in model.parameters():
    value.data += 0.2 * torch.randn_like(value)
  start = {name: value.clone() for name, value in model.named_parameters()}
  folders = ('base', 'math', 'code')
  for folder in folders:
    if folder != 'base':
      for key, value in model.named_parameters():
        update = 0.05 * torch.randn(value.shape)
        value.data = (start[key].float() + update).to(torch.bfloat16)
    model.save_pretrained(path / 'apart' / folder)
    model.save_pretrained(path / 'fused' / folder, save_original_format=False)
  return Saved(
    *(
      groups.Group(path / form / 'base', (path / form / 'math', path / form / 'code'))
      for form in ('apart', 'fused')
    )
  )


def weights(group: groups.Group) -> list[dict[str, np.ndarray]]:
  return [groups.load(path) for path in (group.base, *group.experts)]


def unfused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Every entry of a tensor of three dimensions as a tensor of its own."""
  found = {}
  for name, value in tensors.items():
    if value.ndim == 3:
      found |= {name.replace('experts', f'experts.{i}'): x for i, x in enumerate(value)}
    else:
      found[name] = value
  return found


def by_hand(group: groups.Group, method: str, **settings: Any):
  """The merge of the same weights, each matrix a tensor of its own."""
  base, *experts = map(unfused, weights(group))
  return resmerge_jax.merge_state_dicts(
    base, experts, method, output_dtype='bfloat16', **settings
  )


@pytest.mark.parametrize('name', CONFIGS)
def test_fused_experts_are_merged_as_matrices_of_their_own(
  saved, name, tmp_path, caplog
):
  group = saved[name].fused
  merged = groups.merge(group, tmp_path / 'out')
  got = groups.load(merged.output)
  assert {value.shape[0] for value in got.values() if value.ndim == 3} == {N}
  wanted = by_hand(group, 'resmerge')
  groups.assert_same_bits(unfused(got), wanted.tensors)
  model = load(merged.output, caplog)
  for key, value in model.state_dict().items():
    stored = torch.from_numpy(got[key].view(np.int16)).view(torch.bfloat16)
    assert torch.equal(value, stored), key

  records = {r['name']: r for r in groups.records(merged.output)}
  for i in range(N):
    ours = records[f'{DOWN}[{i}]']
    theirs = {r['name']: r for r in wanted.records}[
      DOWN.replace('experts', f'experts.{i}')
    ]
    assert (ours['rule'], ours['family'], ours['shape']) == ('method', 'ffn', [16, 16])
    assert {**ours, 'name': ''} == {**theirs, 'name': ''}
  assert {r['rule'] for r in records.values() if r['family'] == 'router'} == {
    'task_arithmetic'
  }


@pytest.mark.parametrize('name', ['qwen3_moe', 'qwen2_moe', 'mixtral'])
def test_experts_that_are_tensors_of_their_own(saved, name, tmp_path, caplog):
  """What is one matrix in both forms comes out alike in both."""
  apart, fused = (
    groups.merge(group, tmp_path / form)
    for form, group in saved[name]._asdict().items()
  )
  got, whole = groups.load(apart.output), groups.load(fused.output)
  records = {r['name']: r for r in groups.records(apart.output)}
  experts = [n for n in got if '.experts.' in n]
  assert len(experts) == LAYERS * N * 3
  assert {(records[n]['rule'], records[n]['family']) for n in experts} == {
    ('method', 'ffn')
  }
  routers = [n for n, r in records.items() if r['family'] == 'router']
  assert len(routers) == LAYERS * (2 if name == 'qwen2_moe' else 1)
  assert {records[n]['rule'] for n in routers} == {'task_arithmetic'}
  shared = set(got) & set(whole)
  for n in shared:
    if 'block_sparse_moe' not in n:
      np.testing.assert_array_equal(got[n].view(np.int16), whole[n].view(np.int16), n)
  last = 'w2' if name == 'mixtral' else 'down_proj'
  place = 'block_sparse_moe' if name == 'mixtral' else 'mlp'
  for i in range(N):
    one = got[f'model.layers.0.{place}.experts.{i}.{last}.weight']
    np.testing.assert_array_equal(one.view(np.int16), whole[DOWN][i].view(np.int16))
  load(apart.output, caplog)


@pytest.mark.parametrize(
  'method',
  [
    {'name': 'task_arithmetic'},
    {'name': 'ties', 'flavour': 'official'},
    {'name': 'dare', 'flavour': 'mergelm'},
  ],
  ids=lambda method: method['name'],
)
def test_methods_entry_by_entry_are_those_of_the_whole_tensor(saved, method):
  """Draws, too: a part has the key of its tensor and its own rows of it."""
  base, *experts = (
    {n: tensors[n] for n in (UP, f'{DOWN}_bias')}
    for tensors in weights(saved['gpt_oss'].fused)
  )
  params = {k: v for k, v in method.items() if k != 'name'}
  found, whole = (
    resmerge_jax.merge_state_dicts(
      base, experts, method['name'], params, rules=rules
    ).tensors
    for rules in (None, [{'match': '', 'action': 'method'}])
  )
  assert not np.array_equal(found[UP], base[UP])
  groups.assert_same_bits(found, whole)


def test_methods_of_whole_matrices_see_each_expert_alone(saved):
  """A trim, say, and of the biases each vector by itself."""
  group = saved['gpt_oss'].fused
  params = {'flavour': 'mergekit', 'keep': 0.2}
  base, *experts = (
    {n: tensors[n] for n in (UP, f'{UP}_bias')} for tensors in weights(group)
  )
  got = resmerge_jax.merge_state_dicts(base, experts, 'ties', params)
  alone = [
    {f'{n}.{i}': x for n in (UP, f'{UP}_bias') for i, x in enumerate(tensors[n])}
    for tensors in (base, *experts)
  ]
  want = resmerge_jax.merge_state_dicts(alone[0], alone[1:], 'ties', params).tensors
  for n in (UP, f'{UP}_bias'):
    for i in range(N):
      np.testing.assert_array_equal(
        got.tensors[n][i].view(np.int16), want[f'{n}.{i}'].view(np.int16)
      )


def test_a_rule_sends_routers_to_the_method(saved, tmp_path):
  rules = [
    {'match': '', 'family': 'router', 'ndim': 2, 'action': 'method'},
    *RELEASE_RULES,
  ]
  merged = groups.merge(saved['mixtral'].fused, tmp_path / 'out', rules=rules)
  record = {r['name']: r for r in groups.records(merged.output)}[
    'model.layers.0.mlp.gate.weight'
  ]
  assert (record['rule'], record['family']) == ('method', 'router')
  assert 'sigma' in record


def test_recipes_and_arrays_have_the_fused_tensors(saved, tmp_path):
  group = saved['gpt_oss'].fused
  config = groups.config_of(group, tmp_path / 'out', save_recipe=True)
  want = groups.load(resmerge_jax.merge(config).output)
  recipe = resmerge_jax.Recipe(tmp_path / 'out/recipe', group.base, group.experts)
  again = resmerge_jax.apply_recipe(recipe, tmp_path / 'again')
  groups.assert_same_bits(groups.load(again.output), want)
  with pytest.warns(UserWarning, match='no tokenizer files'):
    found = resmerge_jax.load_merged(recipe)
  groups.assert_same_bits({n: np.asarray(x) for n, x in found.items()}, want)


def test_meshes_processes_and_a_resume_change_nothing(saved, tmp_path, monkeypatch):
  group = saved['qwen3_moe'].fused
  settings: dict[str, Any] = {'max_shard_size': '3kB'}
  want = groups.merge(group, tmp_path / 'out', **settings).output
  got = groups.merge(group, tmp_path / 'mesh', mesh='layer:3,row:2', **settings)
  several.assert_agree(*map(groups.load, (got.output, want, group.base)))
  whole = groups.merge(group, tmp_path / 'whole', whole_files=True, **settings)
  assert groups.weight_bytes(whole.output) == groups.weight_bytes(want)
  stopped = tmp_path / 'stopped'
  small = {'memory_budget': PROCESS_BYTES + 60_000, 'rules': None}
  resumes.stop(group, stopped, monkeypatch, n_steps=4, **settings, **small)
  again = groups.merge(group, stopped, resume=True, **settings, **small)
  assert 'resuming: 4 of ' in again.notes[1]
  assert groups.weight_bytes(again.output) == groups.weight_bytes(want)
  experts = ','.join(map(str, group.experts))
  words = [f'--base={group.base}', f'--experts={experts}', '--output=two']
  words += ['--max_shard_size=3kB']
  for ended in launches.run(tmp_path, launches.joining(2, words), devices=4):
    assert ended.status == 0, ended.err
  assert groups.weight_bytes(tmp_path / 'two') == groups.weight_bytes(want)
