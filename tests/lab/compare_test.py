"""The methods table: its arithmetic, and one made of tiny models."""

import numpy as np
import pytest
from flax import nnx

from resmerge_jax.lab.compare import compare_groups, method_rows
from resmerge_jax.lab.group import RECORD, save_model
from resmerge_jax.lab.recipe import GroupRecipe, ModelRecipe
from resmerge_jax.lab.scores import paired_difference
from resmerge_jax.models.decoder import Decoder

RECIPE = GroupRecipe(
  tasks=('math',),
  model=ModelRecipe(hidden_size=16, intermediate_size=24, layers=1),
  check_prompts=10,
  test_prompts=20,
)


def right(count, of=10):
  return {'math': np.arange(of) < count}


def test_paired_errors():
  a = {'x': {'s': np.array([1, 1, 0, 0]), 't': np.array([1, 1, 1, 0])}}
  b = {'y': {'s': np.array([1, 0, 0, 0]), 't': np.array([1, 0, 0, 1])}}
  found = paired_difference([a | b], 'x', 'y')
  # s: 0 1 0 0, variance 1/4; t: 0 1 1 -1, variance 11/12; over 4 prompts, 2 tasks.
  assert found == pytest.approx((0.25, ((1 / 4 + 11 / 12) / 4) ** 0.5 / 2, None))
  same = {'x': a['x'], 'y': a['x']}
  of_two = paired_difference([a | b, same], 'x', 'y')
  assert of_two[0] == pytest.approx(0.125)
  # Halved by the average over seeds; 0.25 and 0 have a standard error of 0.125.
  assert of_two[1:] == pytest.approx((found[1] / 2, 0.125))


def test_rows():
  found = {'base': right(2), 'rl_math': right(10)}
  found |= {'task_arithmetic': right(4), 'ties': right(6)}
  rows = method_rows(RECIPE, [found], {'ties': [1.5]})
  assert rows[0][:4] == ('model', 'math', 'mean', 'retention')
  by_name = {row[0]: row[1:] for row in rows}
  assert by_name['base'][:5] == ('20.0', '20.0', '', '', '-20.0')
  assert by_name['ties'][:5] == ('60.0', '60.0', '60.0', '50.0', '+20.0')
  # Two of ten prompts differ: variance 0.16 * 10 / 9.
  assert by_name['ties'][5:] == ('13.3', '', '1.5')
  assert by_name['task_arithmetic'][4:] == ('+0.0', '0.0', '', '')


def test_tiny_models(tmp_path):
  folder = tmp_path / 'seed_0'
  for seed, name in enumerate(('base', 'rl_math')):
    model = Decoder(RECIPE.model.config(), nnx.Rngs(seed))
    save_model(model, folder / name)
    (folder / name / RECORD).write_text('{}')
  methods = {
    'task_arithmetic': {'name': 'task_arithmetic'},
    'resmerge': {'name': 'resmerge', 'variant': 'paper'},
  }
  said = []
  text = compare_groups(
    RECIPE, [folder], methods, 'bf16', tmp_path / 'table', said.append
  )
  assert text == (tmp_path / 'table.md').read_text()
  names = [line.split(' | ')[0] for line in text.splitlines()[2:]]
  assert names == [
    '| base',
    '| rl_math',
    '| task_arithmetic',
    '| task_arithmetic, length tuned',
    '| resmerge',
    '| resmerge, length tuned',
  ]
  assert len(said) == 2
  for suffix in ('csv', 'json', 'png'):
    assert (tmp_path / f'table.{suffix}').stat().st_size > 100
