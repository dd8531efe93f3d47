"""Recipes that cannot be applied: what is said, and that nothing is written."""

import dataclasses
import json
import pathlib
import shutil

import pytest

import resmerge_jax
from resmerge_jax import Recipe
from resmerge_jax.errors import InputError
from tests import folders, groups

NAME = 'model.layers.0.mlp.up_proj.weight'


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  weights = [folders.tensors(i) for i in range(3)]
  return groups.write(tmp_path_factory.mktemp('group'), weights[0], weights[1:])


@pytest.fixture(scope='module')
def saved(group, tmp_path_factory) -> pathlib.Path:
  output = tmp_path_factory.mktemp('saved') / 'out'
  return groups.merge(group, output, method=groups.MEAN, save_recipe=True).output


@pytest.fixture
def recipe(group, saved) -> Recipe:
  return Recipe(saved / 'recipe', group.base, group.experts)


def refused(recipe: Recipe, tmp_path: pathlib.Path) -> InputError:
  with pytest.raises(InputError) as error:
    resmerge_jax.apply_recipe(recipe, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  return error.value


def test_other_headers(recipe, tmp_path, group):
  other = groups.write(tmp_path / 'in', folders.tensors(vocab=9), [])
  experts = (other.base, group.experts[1])
  error = refused(dataclasses.replace(recipe, base=other.base), tmp_path)
  assert 'are not those of base' in str(error) or 'BF16 [9' in str(error)
  shutil.copytree(group.base, tmp_path / 'f32')
  merged = groups.merge(
    group, tmp_path / 'wide', method=groups.MEAN, output_dtype='float32'
  )
  experts = (group.experts[0], merged.output)
  error = refused(dataclasses.replace(recipe, experts=experts), tmp_path)
  assert error.what == f'recipe {recipe.path}: made from other checkpoints'
  (problem,) = error.problems
  assert problem.startswith(f"expert 'e1', {merged.output}: headers with SHA-256 ")


def test_experts_in_another_order(recipe, tmp_path):
  """Experts of one base have equal headers: their task vectors tell."""
  swapped = dataclasses.replace(recipe, experts=recipe.experts[::-1])
  error = refused(swapped, tmp_path)
  assert (
    error.what == f'recipe {recipe.path}: the weights are not those that were merged'
  )
  assert "update of expert 'e0' has norm " in error.problems[0]
  assert not list(tmp_path.iterdir())


def test_another_number_of_experts(recipe, tmp_path):
  fewer = dataclasses.replace(recipe, experts=recipe.experts[:1])
  assert refused(fewer, tmp_path).what == (
    f'recipe {recipe.path}: got 1 experts, it was made from 2: e0, e1'
  )


def test_parameters_that_the_method_has_not(recipe, tmp_path):
  error = refused(dataclasses.replace(recipe, rho=0.1, beta_max=1.0), tmp_path)
  assert (
    error.what
    == f'recipe {recipe.path}: task_arithmetic has no rho, beta_max to change'
  )


def test_parameters_out_of_range_are_those_of_the_method():
  with pytest.raises(InputError, match='rho'):
    resmerge_jax.ResMerge(rho=-1)


@pytest.mark.parametrize('damage', ['flip', 'cut', 'remove', 'text', 'format', 'part'])
def test_damaged_recipes(recipe, saved, tmp_path, damage):
  folder = tmp_path / 'recipe'
  shutil.copytree(saved / 'recipe', folder)
  factors, text = folder / 'factors.safetensors', folder / 'recipe.json'
  raw, content = bytearray(factors.read_bytes()), json.loads(text.read_text())
  if damage == 'flip':
    raw[-1] ^= 1
    factors.write_bytes(raw)
    expected = f'{factors}: damaged: not the bytes that the merge wrote'
  elif damage == 'cut':
    factors.write_bytes(raw[:-4])
    expected = f'{factors}: truncated'
  elif damage == 'remove':
    factors.unlink()
    expected = f'{factors}: cannot be read: No such file or directory'
  elif damage == 'text':
    text.write_text('{}')
    expected = f"{text}: not a recipe (KeyError('format'))"
  elif damage == 'format':
    text.write_text(json.dumps({**content, 'format': 2}))
    expected = f'{text}: format 2, expected 1'
  else:  # of a version whose rules are others
    content['config']['method'] = {'name': 'resmerge'}
    text.write_text(json.dumps(content))
    expected = f'recipe {folder}: it does not fit this merge'
  error = refused(dataclasses.replace(recipe, path=folder), tmp_path)
  assert str(error).startswith(expected)


def test_no_recipe(recipe, saved, tmp_path):
  error = refused(dataclasses.replace(recipe, path=saved), tmp_path)
  assert (
    error.what == f'{saved / "recipe.json"}: cannot be read: No such file or directory'
  )
  assert 'give the folder recipe/' in str(error)
