"""Recipes: the bytes of a merge again, from coefficients and low-rank factors."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import resmerge_jax
from resmerge_jax import Recipe, ResMerge, Rule
from resmerge_jax.checkpoint.group import check_group
from resmerge_jax.checkpoint.memory import memory_checkpoint
from resmerge_jax.config import choose
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.recipe_parts import recipe_parts
from resmerge_jax.plan.plan import make_plan
from resmerge_jax.plan.recipe_layout import with_recipe
from resmerge_jax.plan.rules import SCOPES
from resmerge_jax.synthetic.shapes import SHAPES
from tests import groups, resumes, several
from tests.pipeline.merge_vocabulary_test import make_group

BF16 = ml_dtypes.bfloat16
# float32 shows what rounding to bfloat16 would hide.
SETTINGS = {**several.SETTINGS, 'output_dtype': 'float32'}
OTHER = {'rho': 0.5, 'beta_min': 0.3}


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return several.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='module')
def saved(group, tmp_path_factory) -> pathlib.Path:
  """The output of ResMerge, its rows on several devices, with its recipe."""
  output = tmp_path_factory.mktemp('saved') / 'out'
  settings = {**SETTINGS, 'mesh': 'layer:2,row:4', 'save_recipe': True}
  return groups.merge(group, output, **settings).output


def recipe_of(output: pathlib.Path, group: groups.Group, **changes) -> Recipe:
  return Recipe(output / 'recipe', group.base, group.experts, **changes)


def test_the_merge_is_the_one_without_a_recipe(group, saved, tmp_path):
  output = tmp_path / 'out'
  groups.merge(group, output, **{**SETTINGS, 'mesh': 'layer:2,row:4'})
  assert groups.weight_bytes(output) == groups.weight_bytes(saved)
  assert groups.records(output) == groups.records(saved)


def test_other_devices_rebuild_the_very_same_bytes(group, saved, tmp_path, monkeypatch):
  devices = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)
  again = resmerge_jax.apply_recipe(recipe_of(saved, group), tmp_path / 'out').output
  assert groups.weight_bytes(again) == groups.weight_bytes(saved)
  assert groups.config(again) == groups.config(saved)
  exact = [r['name'] for r in groups.records(saved) if any(r.get('float64_head', []))]
  assert exact == [several.CLOSE]  # its coefficients are those of the second try
  manifest = json.loads((again / 'manifest.json').read_text())
  assert manifest['recipe']['path'] == str(saved / 'recipe')
  assert not manifest['config']['save_recipe']
  assert not (again / 'recipe').exists()


def test_other_parameters_agree_with_a_fresh_merge(group, saved, tmp_path):
  """The same arithmetic on the same numbers, but in another program.

  XLA may fuse a product with the sum that takes it, or not: the last bit of a coefficient.
  """
  recipe = recipe_of(saved, group, **OTHER)
  again = resmerge_jax.apply_recipe(recipe, tmp_path / 'again').output
  settings = {**SETTINGS, 'mesh': 'layer:2,row:4'}
  fresh = groups.merge(
    group, tmp_path / 'fresh', method=ResMerge(**OTHER), **settings
  ).output
  several.assert_agree(
    groups.load(again), groups.load(fresh), base := groups.load(group.base)
  )
  moved = [n for n, x in groups.load(again).items() if n.endswith('up_proj.weight')]
  assert len(moved) == several.LAYERS
  assert any(
    not np.array_equal(groups.load(again)[n], groups.load(saved)[n]) for n in moved
  )
  for ours, theirs in zip(groups.records(again), groups.records(fresh), strict=True):
    for key in ('beta', 'alpha_R', 'S_H', 'norm_A', 'branch'):
      if key in theirs and isinstance(theirs[key], str):
        assert ours[key] == theirs[key]
      elif key in theirs:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-30)
  assert base.keys() == groups.load(again).keys()
  config = json.loads((again / 'manifest.json').read_text())['config']
  assert config['method']['rho'] == OTHER['rho']


# Every method whose updates have that form, each for a layer of its own.
FORMS = {
  'resmerge': {'head_rank': 5},  # more terms than are fused
  'task_arithmetic': {'reduce': 'sum', 'scale': 0.7},
  'linear': {},
  'slerp': {'on': 'task_vectors'},
  'nuslerp': {},
  'multislerp': {},
  'model_stock': {},
  'warp': {},  # scans
  'head_only': {'head_rank': 2},
  'residual_only': {'expert': 1},
}


@functools.cache
def one_layer_each() -> list[dict[str, np.ndarray]]:
  rng = np.random.default_rng(0)
  names = [f'model.layers.{i}.mlp.up_proj.weight' for i in range(len(FORMS))]
  base = {name: rng.standard_normal((13, 12)).astype(np.float32) for name in names}
  return [base] + [
    {
      n: w + 1e-2 * rng.standard_normal(w.shape).astype(np.float32)
      for n, w in base.items()
    }
    for _ in range(2)
  ]


def test_every_method_of_that_form(tmp_path):
  base, *experts = one_layer_each()
  group = groups.write(tmp_path, base, experts)
  rules = tuple(
    Rule(rf'layers\.{i}\.', 'method', name, method=(name, params))
    for i, (name, params) in enumerate(FORMS.items())
  )
  posts = (('lines', {'beta': 0.5}), ('liti', {'eta': 0.9}))  # the first scans
  saved = groups.merge(
    group, tmp_path / 'out', rules=rules, post=posts, save_recipe=True,
    output_dtype='float32',
  ).output  # fmt: skip
  recipe = recipe_of(saved, group)
  again = resmerge_jax.apply_recipe(recipe, tmp_path / 'again')
  assert groups.weight_bytes(again.output) == groups.weight_bytes(saved)
  assert again.content['bytes_read'] == sum(w.nbytes for w in base.values()) * 3
  with pytest.raises(InputError) as error:
    resmerge_jax.apply_recipe(dataclasses.replace(recipe, rho=1), tmp_path / 'other')
  assert error.value.what.endswith('parameters cannot be changed under lines')


def test_methods_without_that_form_are_refused_before_reading(group, tmp_path):
  with pytest.raises(InputError) as error:
    groups.merge(
      group, tmp_path / 'out', save_recipe=True, post=(('svc', {}),),
      method=resmerge_jax.TaskArithmetic(),
    )  # fmt: skip
  assert 'TaskArithmetic() then Svc()' in error.value.problems[0]
  names = 'model.layers.{0..2}.mlp.up_proj.weight'
  rule = Rule('up_proj.weight', 'method', 'matrix', method=('ties', {}))
  kept = Rule('position_ids', 'base', 'kept', floating=False)
  rules = (rule, kept, Rule('', 'task_arithmetic', 'rest'))
  with pytest.raises(InputError) as error:
    groups.merge(group, tmp_path / 'out', save_recipe=True, rules=rules)
  assert error.value.what == (
    'save_recipe: updates that are no few coefficients and vectors'
  )
  assert error.value.problems == (f'Ties(): {names}',)
  assert not list(tmp_path.iterdir())


def test_a_run_that_stopped_keeps_its_part_of_the_recipe(tmp_path, monkeypatch):
  monkeypatch.setattr('resmerge_jax.writers.journal.EVERY_S', 0)
  group, output = resumes.write_group(tmp_path / 'in'), tmp_path / 'work' / 'out'
  whole = groups.merge(group, output, save_recipe=True, **resumes.SETTINGS).output
  expected = resumes.contents(whole)
  assert {'recipe/recipe.json', 'recipe/factors.safetensors'} < expected.keys()
  shutil.rmtree(output)
  resumes.stop(group, output, monkeypatch, n_steps=7, save_recipe=True)
  left = resumes.partial(output) / 'new' / 'recipe'
  assert [path.name for path in left.iterdir()] == ['factors.safetensors.part']
  manifest = resumes.resume(group, output, save_recipe=True)
  assert manifest.notes[1].startswith('resuming: 7 of ')
  assert resumes.contents(output) == expected
  # What a merge from a recipe does when it is stopped and resumed.
  recipe, again = recipe_of(output, group), tmp_path / 'work' / 'again'
  resmerge_jax.apply_recipe(recipe, again)
  verified = resmerge_jax.apply_recipe(recipe, again, resume=True)
  assert verified.verified_only
  other = dataclasses.replace(recipe, rho=0.3)
  with pytest.raises(InputError, match=r'rho: got 0\.3, expected 0\.2'):
    resmerge_jax.apply_recipe(other, again, resume=True)


def test_rows_that_experts_lack_have_coefficients_of_their_own(tmp_path):
  group, _ = make_group(tmp_path)
  settings = {'vocab': 'pad', 'output_dtype': 'float32'}
  mean = groups.MEAN
  saved = groups.merge(
    group, tmp_path / 'out', method=mean, save_recipe=True, **settings
  ).output
  again = resmerge_jax.apply_recipe(recipe_of(saved, group), tmp_path / 'again').output
  assert groups.weight_bytes(again) == groups.weight_bytes(saved)
  factors = load_file(saved / 'recipe' / 'factors.safetensors')
  name = 'model.embed_tokens.weight'
  np.testing.assert_array_equal(factors[f'{name}:a_N'], [0.5, 0.5])
  np.testing.assert_array_equal(factors[f'{name}@5:a_N'], [1, 0])


def test_what_a_recipe_holds(saved):
  factors = load_file(saved / 'recipe' / 'factors.safetensors')
  n, rows, cols = several.N_EXPERTS, several.ROWS, several.COLS
  name = 'model.layers.0.mlp.up_proj.weight'
  shapes = {
    k.removeprefix(f'{name}:'): v.shape for k, v in factors.items() if name in k
  }
  assert shapes == {
    'a_N': (n,), 'w_T': (n,), 'u_TxR': (n, rows), 'v_TxC': (n, cols),
    'gram_R_NxN': (n, n), 'gram_H_NxN': (n, n), 'norm_Q': (), 'norm_sum_R': (),
  }  # fmt: skip
  record = next(r for r in groups.records(saved) if r['name'] == name)
  sigma_N = np.linalg.norm(factors[f'{name}:u_TxR'], axis=1)  # scaled by them
  np.testing.assert_allclose(sigma_N, np.ravel(record['sigma']), rtol=1e-6)
  diagonal_N = np.diag(factors[f'{name}:gram_R_NxN'])
  np.testing.assert_allclose(np.sqrt(diagonal_N), record['norm_R'], rtol=1e-6)
  manifest = json.loads((saved / 'manifest.json').read_text())
  assert {'recipe/recipe.json', 'recipe/factors.safetensors'} < manifest['files'].keys()


@pytest.mark.parametrize(
  ('model', 'megabytes'), [('qwen2.5-0.5b', 6.7), ('qwen2.5-7b', 30.4)]
)
def test_size_of_three_experts(model, megabytes):
  """The heads of the paper's setting: float32 vectors of R + C entries per expert."""
  shape = SHAPES[model]
  weights = {
    name: np.broadcast_to(np.zeros((), BF16), size) for name, size in shape.tensors()
  }
  group = check_group(
    memory_checkpoint(weights, 'base'),
    [memory_checkpoint(weights, f'e{i}') for i in range(3)],
  )
  method = ResMerge()
  plan = make_plan(
    group,
    SCOPES['hidden'],
    choose=choose(method, resmerge_jax.TaskArithmetic(), (), 2),
    output_dtype='bfloat16',
  )
  layout = with_recipe(plan.layout, recipe_parts(plan), apart=False)
  vectors = sum(
    3 * 4 * (ref.rows + ref.cols)
    for name, ref in group.base.tensors.items()
    if plan.rules[name].action == 'method'
  )
  n_bytes = layout.recipe[0].nbytes
  assert n_bytes / 1e6 == pytest.approx(megabytes, abs=0.2)
  assert n_bytes < 1.05 * vectors
