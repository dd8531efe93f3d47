"""Merges of LoRA adapters: equal to merges of the models that they stand for."""

import dataclasses
import json
import warnings

import ml_dtypes
import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.config import config_from
from resmerge_jax.errors import InputError
from resmerge_jax.parameters import make_method
from resmerge_jax.pipeline.prepare import prepare
from resmerge_jax.pipeline.sweep import merge_sweep
from resmerge_jax.plan.report import describe_plan
from tests import adapters, folders, groups, resumes
from tests.lora_group import (
  BASE,
  COLS,
  EMBED,
  EXPERTS,
  FLOAT32,
  LAYERS,
  ROWS,
  UP,
  Q,
  float32,
  lora,
  write,
  write_group,
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('group')


@pytest.fixture(scope='module')
def adapter_group(place) -> groups.Group:
  return write_group(place)


@pytest.fixture(scope='module')
def models(place, adapter_group) -> groups.Group:
  """The same experts as models in float32."""
  return groups.Group(
    adapter_group.base,
    tuple(
      folders.write_folder(place / 'models' / id, float32(adapters.merged(BASE, x)))
      for id, x in EXPERTS.items()
    ),
  )


ONE_MODULE = {n: x for n, x in BASE.items() if Q.split('.')[-1] not in n}


def pair_of(path, experts) -> list[groups.Group]:
  """Adapters of ONE_MODULE with these factors, and their models: few programs."""
  base = folders.write_folder(path / 'base', ONE_MODULE)
  adapted, models = [], []
  for i, factors in enumerate(experts):
    some = {n: x for n, x in factors.items() if UP.split('.')[-1] in n}
    rank = max(x.shape[0] for n, x in some.items() if 'lora_A' in n)
    folder = path / f'adapters/e{i}'  # of one name, which random masks depend on
    adapted.append(adapters.write(folder, some, r=rank, lora_alpha=2 * rank))
    model = float32(adapters.merged(ONE_MODULE, some))
    models.append(folders.write_folder(path / f'models/e{i}', model))
  return [groups.Group(base, tuple(adapted)), groups.Group(base, tuple(models))]


@pytest.fixture(scope='module')
def of_one_module(place):
  return pair_of(place / 'one_module', EXPERTS.values())


@pytest.fixture(scope='module')
def full_rank(place):
  return pair_of(place / 'full_rank', [lora(1, COLS), lora(2, COLS)])


def assert_equal_updates(got, want, within):
  """Frobenius norms relative to the update; models in float32 round D to 1e-5 of it."""
  assert got.keys() == want.keys()
  changed = 0
  for name, value in want.items():
    update = np.linalg.norm(value - BASE[name].astype(np.float32))
    assert np.linalg.norm(got[name] - value) <= within * update, name
    changed += update > 0
  return changed


@pytest.fixture(scope='module')
def resmerged(adapter_group, place):
  manifest = groups.merge(adapter_group, place / 'resmerged', **FLOAT32)
  return groups.load(manifest.output), groups.records(manifest.output), manifest


def test_resmerge_of_adapters_and_of_models(resmerged, models, tmp_path):
  got, records, manifest = resmerged
  theirs = groups.merge(models, tmp_path / 'out', **FLOAT32)
  assert assert_equal_updates(got, groups.load(theirs.output), 3e-5) == 2 * LAYERS
  for ours, other in zip(records, groups.records(theirs.output), strict=True):
    assert ours.keys() == other.keys(), ours['name']
    for key in ('delta_norm', 'sigma', 'S_H', 's_R', 'norm_R', 'update_norm'):
      if key in ours:
        np.testing.assert_allclose(ours[key], other[key], rtol=2e-4, atol=1e-6)
  plan = manifest.content
  # The base once, and float32 factors beside it: no expert's whole tensors.
  factors = 3 * 9 * 4 * LAYERS * (ROWS + COLS + COLS + COLS)
  assert plan['bytes_read'] <= sum(x.nbytes for x in BASE.values()) + factors
  assert plan['bytes_read'] < theirs.content['bytes_read'] / 3


def test_untouched_tensors_are_the_bases(resmerged):
  got, records, _ = resmerged
  for name in (f'{EMBED}.weight', 'model.norm.weight'):
    np.testing.assert_array_equal(got[name], BASE[name].astype(np.float32))
  (record,) = (r for r in records if r['name'] == f'{EMBED}.weight')
  assert record['delta_norm'] == [0, 0, 0]
  assert record['zero_fraction'] == [1, 1, 1]
  assert 'identical' not in record


@pytest.mark.parametrize(
  'name',
  ['task_arithmetic', 'linear', 'ties', 'ram', 'slerp', 'della', 'iso_c', 'karcher'],
)
def test_any_method_takes_them(name, of_one_module, full_rank, tmp_path):
  settings = {'method': make_method(name, None), **FLOAT32}
  # iso_c needs updates of full rank: others leave it directions at will.
  pair = full_rank if name == 'iso_c' else of_one_module
  if name == 'slerp':
    pair = [g._replace(experts=g.experts[:2]) for g in pair]
  got, want = (
    groups.load(groups.merge(g, tmp_path / str(i), **settings).output)
    for i, g in enumerate(pair)
  )
  within = 2e-3 if name == 'iso_c' else 3e-5  # iso_c: smallest singular values count
  assert assert_equal_updates(got, want, within) == LAYERS


@pytest.mark.parametrize('name', ['resmerge', 'task_arithmetic', 'ties'])
def test_adapters_beside_whole_models(name, adapter_group, models, tmp_path):
  settings = {'method': make_method(name, None), **FLOAT32}
  mixed = adapter_group._replace(
    experts=(adapter_group.experts[0], models.experts[1], adapter_group.experts[2])
  )
  got = groups.load(groups.merge(mixed, tmp_path / 'a', **settings).output)
  want = groups.load(groups.merge(models, tmp_path / 'b', **settings).output)
  assert assert_equal_updates(got, want, 3e-5) == 2 * LAYERS


@pytest.mark.parametrize('mesh', ['layer:1', 'layer:3,row:2', 'row:8'])
def test_any_mesh(mesh, adapter_group, resmerged, tmp_path):
  got = groups.merge(adapter_group, tmp_path / 'out', mesh=mesh, **FLOAT32)
  # Sums over rows in another order.
  assert_equal_updates(groups.load(got.output), resmerged[0], 1e-5)


def test_whole_tensors_in_an_adapter(adapter_group, tmp_path):
  """A norm in modules_to_save, and an embedding stored whole under its update."""
  rng = np.random.default_rng(7)
  norm = rng.normal(size=COLS).astype(ml_dtypes.bfloat16)
  a_FxV, b_DxF = (
    np.float32(rng.normal(size=(6, 300))),
    np.float32(rng.normal(size=(COLS, 6))),
  )
  P = adapters.PREFIX
  tensors = EXPERTS['e0'] | {
    f'{P}model.norm.weight': norm,
    f'{P}{EMBED}.base_layer.weight': BASE[f'{EMBED}.weight'],
    f'{P}{EMBED}.lora_embedding_A': a_FxV,
    f'{P}{EMBED}.lora_embedding_B': b_DxF,
  }
  saving = adapters.write(tmp_path / 'saving', tensors, r=6, lora_alpha=12)
  group = adapter_group._replace(experts=(saving, adapter_group.experts[1]))
  merged = groups.merge(group, tmp_path / 'out', memory_budget=None, **FLOAT32)
  got, base = groups.load(merged.output), float32(BASE)
  half = base['model.norm.weight'] / 2 + norm.astype(np.float32) / 2
  np.testing.assert_allclose(got['model.norm.weight'], half, rtol=1e-6)
  want = base[f'{EMBED}.weight'] + (b_DxF @ a_FxV).T  # 2 / 2 experts
  np.testing.assert_allclose(got[f'{EMBED}.weight'], want, rtol=1e-5, atol=1e-5)
  tied = [w for w in merged.warnings if 'ties its head' in w]
  assert len(tied) == 1


def test_an_embedding_in_blocks_of_rows(adapter_group, tmp_path):
  rng = np.random.default_rng(7)
  P, a, b = adapters.PREFIX, rng.normal(size=(2, 300)), rng.normal(size=(COLS, 2))
  tensors = {f'{P}{EMBED}.lora_embedding_A': a, f'{P}{EMBED}.lora_embedding_B': b}
  expert = adapters.write(
    tmp_path / 'e', {n: np.float32(x) for n, x in tensors.items()}
  )
  group = adapter_group._replace(experts=(expert,))
  plan = prepare(groups.config_of(group, tmp_path / 'x')).plan
  floor = plan.peak_memory  # of the whole embedding
  settings = {'memory_budget': floor - 40_000, 'method': groups.MEAN, **FLOAT32}
  prepared = prepare(groups.config_of(group, tmp_path / 'x', **settings))
  assert sum(f'{EMBED}.weight' in s.names for s in prepared.plan.steps) > 1
  got = groups.load(groups.merge(group, tmp_path / 'out', **settings).output)
  want = float32(BASE)[f'{EMBED}.weight'] + 2 * (b @ a).T
  np.testing.assert_allclose(got[f'{EMBED}.weight'], want, rtol=1e-5, atol=1e-5)


def test_vocabularies_of_different_size(adapter_group, tmp_path):
  """More tokens in a model; the adapter keeps the base's, and has no say in the others."""
  larger = float32(BASE) | {f'{EMBED}.weight': np.ones((310, COLS), np.float32)}
  model = folders.write_folder(tmp_path / 'm', larger)
  group = adapter_group._replace(experts=(adapter_group.experts[0], model))
  merged = groups.merge(
    group, tmp_path / 'out', vocab='pad', method=groups.MEAN, **FLOAT32
  )
  got = groups.load(merged.output)[f'{EMBED}.weight']
  want = (float32(BASE)[f'{EMBED}.weight'] + 1) / 2
  np.testing.assert_allclose(got[:300], want, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(got[300:], np.ones((10, COLS)))


def test_nan_in_factors_is_named(adapter_group, tmp_path):
  tensors = {name: value.copy() for name, value in lora(5).items()}
  tensors[f'{adapters.PREFIX}{UP.format(1)}.lora_B.weight'][3, 1] = np.nan
  bad = adapters.write(tmp_path / 'bad', tensors, r=6)
  group = adapter_group._replace(experts=(adapter_group.experts[0], bad))
  with pytest.raises(InputError) as caught:
    groups.merge(group, tmp_path / 'out')
  problem = f"NaN or Inf in the weights\n  - expert 'bad': {UP.format(1)}.weight\nWhy"
  assert problem in str(caught.value)


def test_twins_and_adapters_without_an_update(adapter_group, tmp_path):
  zero = {n: 0 * x if 'lora_B' in n else x for n, x in EXPERTS['e0'].items()}
  none = adapters.write(tmp_path / 'none', zero, r=6)
  twin = write(tmp_path / 'twin', 'e0')
  group = adapter_group._replace(experts=(adapter_group.experts[0], twin, none))
  warnings = groups.merge(group, tmp_path / 'out', method=groups.MEAN).warnings
  assert "experts 'e0' and 'twin' are identical: one update counts twice" in warnings
  assert "expert 'none' is identical to the base: it brings no update" in warnings
  assert sum('identical' in warning for warning in warnings) == 2


def test_a_run_is_resumed_with_the_same_adapters_only(
  adapter_group, tmp_path, monkeypatch
):
  again = write(tmp_path / 'e1', 'e1')
  group = adapter_group._replace(experts=(*adapter_group.experts[:1], again))
  output = tmp_path / 'out'
  settings = {'rules': None, 'max_shard_size': '30kB', 'memory_budget': None}
  want = groups.weight_bytes(groups.merge(group, output, **settings).output)
  content = json.loads((output / 'manifest.json').read_text())
  assert set(content['inputs'][2]['files']) == {
    'adapter_config.json', 'adapter_model.safetensors'
  }  # fmt: skip
  resumes.stop(group, tmp_path / 'new', monkeypatch, n_steps=2, **settings)
  done = resumes.resume(group, tmp_path / 'new', **settings)
  assert any('resuming: 2 of' in note for note in done.notes)
  assert groups.weight_bytes(done.output) == want
  resumes.stop(group, tmp_path / 'third', monkeypatch, n_steps=2, **settings)
  config = json.loads((again / 'adapter_config.json').read_text())
  (again / 'adapter_config.json').write_text(json.dumps(config | {'lora_alpha': 1}))
  with pytest.raises(InputError, match="expert 'e1'"):
    resumes.resume(group, tmp_path / 'third', **settings)


def test_matrices_that_float32_cannot_settle_go_to_the_host(adapter_group, tmp_path):
  """Close singular values in the head's place, as in any other expert."""
  rng, sigma = np.random.default_rng(0), 1 - 1e-5 * np.arange(6)
  tensors = {}
  for name, value in lora(1).items():
    q, _ = np.linalg.qr(
      rng.standard_normal(value.shape[:: 1 if 'lora_B' in name else -1])
    )
    tensors[name] = np.float32(q * sigma if 'lora_B' in name else q.T)
  close = adapters.write(tmp_path / 'close', tensors, r=6)
  group = adapter_group._replace(experts=(close, adapter_group.experts[0]))
  merged = groups.merge(group, tmp_path / 'out', mesh='row:2', **FLOAT32)
  heads = [r['float64_head'] for r in groups.records(merged.output) if 'sigma' in r]
  assert heads == [[True, False]] * 2 * LAYERS


def test_recipes_and_loading_without_a_folder(adapter_group, tmp_path):
  """Both take adapters; a recipe gives the same bytes, and other parameters."""
  saved = groups.merge(
    adapter_group, tmp_path / 'a', save_recipe=True, **FLOAT32
  ).output
  recipe = resmerge_jax.Recipe(saved / 'recipe', *adapter_group)
  again = resmerge_jax.apply_recipe(recipe, tmp_path / 'b').output
  assert groups.weight_bytes(again) == groups.weight_bytes(saved)
  changed = dataclasses.replace(recipe, rho=0.5)
  got = groups.load(resmerge_jax.apply_recipe(changed, tmp_path / 'c').output)
  method = resmerge_jax.ResMerge(rho=0.5)
  fresh = groups.merge(adapter_group, tmp_path / 'd', method=method, **FLOAT32)
  # The same numbers in another program.
  assert_equal_updates(got, groups.load(fresh.output), 1e-6)
  config = groups.config_of(adapter_group, tmp_path / 'e', **FLOAT32)
  with warnings.catch_warnings(record=True):
    warnings.simplefilter('always')
    loaded = resmerge_jax.load_merged(config)
  groups.assert_same_bits(
    {name: np.asarray(value) for name, value in loaded.items()}, groups.load(saved)
  )


def test_the_plan_as_text(adapter_group, tmp_path):
  prepared = prepare(groups.config_of(adapter_group, tmp_path / 'x'))
  lines = describe_plan(prepared.plan, prepared.group, 'bfloat16')
  assert sum(', a LoRA adapter' in line for line in lines) == 3
  assert sum('BF16 + factors of rank 9 -> BF16' in line for line in lines) == 2


def test_a_sweep_over_adapters(adapter_group, resmerged, tmp_path):
  """Heads of the products, of several ranks at once."""
  names = {'rho-0.2': {}, 'rank': {'head_rank': 2}, 'more': {'rho': 0.9}}
  swept = merge_sweep(
    {
      name: groups.config_of(
        adapter_group,
        tmp_path / name,
        method=make_method('resmerge', params),
        **FLOAT32,
      )
      for name, params in names.items()
    }
  )
  found = {name: groups.load(m.output) for name, m in swept.manifests.items()}
  # float32 heads of one solve and of another
  assert_equal_updates(found['rho-0.2'], resmerged[0], 1e-5)
  config = swept.manifests['more'].content['config']
  single = resmerge_jax.merge(config_from({**config, 'output': tmp_path / 'single'}))
  groups.assert_same_bits(found['more'], groups.load(single.output))
