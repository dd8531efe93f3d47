"""The tables of a comparison: their arithmetic, and those of tiny models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resmerge_jax.cli import lab
from resmerge_jax.lab import compare, method_tables, probes
from resmerge_jax.lab.group import RECORD, save_model
from resmerge_jax.lab.merges import Precision, _decoder, load_group
from resmerge_jax.lab.recipe import GroupRecipe, ModelRecipe
from resmerge_jax.lab.scores import Measured, paired_difference
from resmerge_jax.lab.variants import Entry
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.save import hf_tensors

RECIPE = GroupRecipe(
  tasks=('math',),
  model=ModelRecipe(hidden_size=16, intermediate_size=24, layers=1),
  check_prompts=10,
  test_prompts=10,
  lengths=(1.0, 0.5),
)
PAIR = dataclasses.replace(RECIPE, tasks=('math', 'math_low'))
BF16, FP32 = Precision('bf16', 'bf16'), Precision('fp32', 'fp32')
METHODS = {
  'task_arithmetic': Entry('A.2', {'name': 'task_arithmetic'}),
  'resmerge': Entry('A.2', {'name': 'resmerge', 'variant': 'paper'}),
}


def right(count, of=10):
  return {'math': np.arange(of) < count}


def test_paired_errors():
  a = {'x': {'s': np.array([1, 1, 0, 0]), 't': np.array([1, 1, 1, 0])}}
  b = {'y': {'s': np.array([1, 0, 0, 0]), 't': np.array([1, 0, 0, 1])}}
  contents = {'s': 'abcd', 't': 'efgh'}
  found = paired_difference([a | b], 'x', 'y', contents)
  # s: 0 1 0 0, variance 1/4; t: 0 1 1 -1, variance 11/12; over 4 prompts, 2 tasks.
  assert found == pytest.approx((0.25, ((1 / 4 + 11 / 12) / 4) ** 0.5 / 2, None))
  same = {'x': a['x'], 'y': a['x']}
  of_two = paired_difference([a | b, same], 'x', 'y', contents)
  assert of_two.mean == pytest.approx(0.125)
  # Halved by the average over seeds; 0.25 and 0 have a standard error of 0.125.
  assert of_two[1:] == pytest.approx((found.of_prompts / 2, 0.125))


def test_one_content_in_two_tasks_is_one_draw():
  answers = {'x': {t: np.array([1, 1, 0, 0]) for t in 'st'}}
  answers['y'] = {t: np.zeros(4) for t in 'st'}
  once = paired_difference([answers], 'x', 'y', {'s': 'abcd', 't': 'efgh'})
  twice = paired_difference([answers], 'x', 'y', {'s': 'abcd', 't': 'abcd'})
  assert twice.of_prompts == pytest.approx(2**0.5 * once.of_prompts)
  # As if there were one task: variance 1/3 over 4 prompts.
  assert twice.of_prompts == pytest.approx((1 / 3 / 4) ** 0.5)


LAYER = {'s_R': 0.0, 'c_R': 0.5, 'S_H': 0.25, 'alpha_R': 0.8, 'head share': 0.4}


def measured(resmerge, tuned=9):
  scores = {'base': right(2), 'rl_math': right(10)}
  scores |= {'task_arithmetic': right(4), 'resmerge': right(resmerge)}
  return Measured(
    scores=scores,
    tuned={'task_arithmetic': right(8), 'resmerge': right(tuned)},
    factors={'task_arithmetic': 2.0, 'resmerge': 1.41},
    parts={'rl_math': {'head': right(6)['math'], 'residual': right(8)['math']}},
    curves={
      'head rank': {'k = 1': right(resmerge), 'k = 2': right(3)},
      'budget': {'rho = 0': right(3), 'rho = 1': right(5)},
    },
    geometry={'s_R': 0.0123},
    layers={str(i): LAYER | {'s_R': i / 10} for i in range(2)},
  )


def test_tables(tmp_path):
  text = compare.write_comparison(
    RECIPE, ('rl',), [measured(6)], METHODS, tmp_path / 'table'
  )
  assert text == (tmp_path / 'table.md').read_text()
  tables = method_tables.comparison_tables(RECIPE, ('rl',), [measured(6)], METHODS)
  rows = {table.name: {row[0]: row[1:] for row in table.rows} for table in tables}
  assert rows['models']['rl_math'] == ('100.0', '100.0')
  # Two of ten prompts differ: variance 0.16 * 10 / 9.
  found = ('A.2', '60.0', '60.0', '60.0', '50.0', '+20.0', '13.3', '')
  assert rows['methods']['resmerge'] == found
  assert rows['methods']['task_arithmetic'][-3:] == ('+0.0', '0.0', '')
  found = ('1.41', '90.0', '90.0', '90.0', '87.5', '+10.0', '10.0', '')
  assert rows['tuned']['resmerge'] == found
  found = ('20.0', '100.0', '60.0', '80.0', '50.0', '75.0')
  assert rows['parts']['rl_math'] == rows['parts']['mean of rl'] == found
  curves = next(table for table in tables if table.name == 'curves')
  assert [row[:4] for row in curves.rows[1:3]] == [
    ('head rank', 'k = 1', '60.0', '60.0'),
    ('head rank', 'k = 2', '30.0', '30.0'),
  ]
  assert rows['geometry']['s_R'] == ('0.0123',)
  assert rows['layers'] == {
    'layer': tuple(LAYER),
    '0': ('0', '0.5', '0.25', '0.8', '0.4'),
    '1': ('0.1', '0.5', '0.25', '0.8', '0.4'),
  }
  pictures = ('methods', 'parts', 'curves', 'layers')
  for name in (*(f'{name}.png' for name in pictures), 'methods.csv', 'tuned.csv'):
    assert (tmp_path / f'table_{name}').stat().st_size > 100
  raw = json.loads((tmp_path / 'table.json').read_text())
  assert raw[0]['tuned']['resmerge']['math'] == '1111111110'


def test_two_seeds():
  tables = method_tables.comparison_tables(
    RECIPE, ('rl',), [measured(6), measured(8)], METHODS
  )
  rows = {table.name: {row[0]: row[1:] for row in table.rows} for table in tables}
  # Differences of 20 and 40 points have a standard error of 10.
  assert rows['methods']['resmerge'][-3] == '+30.0'
  assert rows['methods']['resmerge'][-1] == '10.0'
  assert rows['tuned']['resmerge'][0] == '1.41 / 1.41'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('lab') / 'seed_0'
  rng = np.random.default_rng(0)
  graph, params = nnx.split(Decoder(PAIR.model.config(), nnx.Rngs(0)))

  def moved(x):
    return jnp.asarray(np.asarray(x) + rng.normal(0, 0.01, x.shape).astype(np.float32))

  for name in ('base', *PAIR.experts):
    save_model(nnx.merge(graph, jax.tree.map(moved, params)), folder / name)
    (folder / name / RECORD).write_text('{}')
  return folder


def test_probes_and_measuring(folder, monkeypatch):
  group = load_group(PAIR, folder, FP32, list(PAIR.experts))
  mixed = probes.score_budgets(group, 'agreement')
  assert list(mixed)[:2] == ['rho = 0', 'rho = 0.1']
  monkeypatch.setattr(compare, '_curves', lambda _: {'budget': mixed})
  monkeypatch.setattr(probes, 'PARTS', {'residual': 'residual_only'})
  said = []

  def measure(entries):
    return compare.measure_group(PAIR, ('rl',), folder, entries, BF16, said.append)

  found = measure(METHODS)
  assert found.scores.keys() == {'base', *PAIR.experts, *METHODS}
  assert found.tuned.keys() == found.factors.keys() == METHODS.keys()
  assert found.parts['rl_math'].keys() == {'residual'}
  assert abs(found.geometry['cosine']) < 1
  assert found.layers.keys() == {'0'}
  # All hidden matrices are in the one layer.
  assert found.layers['0'].items() <= found.geometry.items()
  assert said[-1].startswith('seed_0: CPU seconds: experts ')
  # rho by two merges and a line is rho by a merge.
  method = {'name': 'resmerge', 'variant': 'paper'}
  none, whole, paper = (
    probes.merged(group, Entry('', {**method, 'rho': rho})).tensors
    for rho in (0.0, 1.0, 0.2)
  )
  for name, x in probes._between(none, whole, 0.2).items():
    # Sums of a few float32 products; weights are of order 0.1.
    np.testing.assert_allclose(x, paper[name], atol=1e-6)

  # What was measured once is not measured again; what was not, is.
  def score(*_, **__):
    raise AssertionError('scored')

  monkeypatch.setattr(compare, 'score_merge', score)
  again = measure(METHODS)
  np.testing.assert_equal(again._asdict(), found._asdict())
  assert any('seed_0: 8 things were measured before: ' in line for line in said)
  with pytest.raises(AssertionError, match='scored'):
    measure({**METHODS, 'sum': Entry('', {'name': 'task_arithmetic', 'scale': 2.0})})


def test_merges_can_be_stored_in_another_precision_than_models(folder):
  precision = Precision('bf16', 'fp32')
  assert (precision.name, BF16.name) == ('bf16_fp32', 'bf16')
  stored = {
    which: load_group(PAIR, folder, which, list(PAIR.experts))
    for which in (BF16, precision)
  }
  name = 'model.layers.0.mlp.up_proj.weight'
  one = stored[BF16].experts['rl_math'][name]
  np.testing.assert_array_equal(one, one.astype(jnp.bfloat16))
  np.testing.assert_array_equal(one, stored[precision].experts['rl_math'][name])
  finer = {**stored[precision].base, name: one * np.float32(1.001)}
  merges = {
    which: np.asarray(dict(hf_tensors(_decoder(group, finer)))[name])
    for which, group in stored.items()
  }
  np.testing.assert_array_equal(merges[precision], finer[name])
  assert (merges[BF16] != finer[name]).any()


def test_geometry_of_task_vectors(folder):
  """Against the whole vectors side by side."""
  group = load_group(PAIR, folder, BF16, list(PAIR.experts))
  a, b = (
    np.concatenate([(x[n] - group.base[n]).ravel() for n in group.base]).astype(float)
    for x in group.experts.values()
  )
  record = {'rule': 'method', 'sigma': [[1.0]], 'delta_norm': [2.0]}
  record |= dict.fromkeys(('s_R', 'c_R', 'S_H', 'alpha_R'), 0.5)
  found = probes.geometry(group, [record])
  expected = a @ b / np.sqrt((a @ a) * (b @ b))
  assert found['cosine'] == pytest.approx(expected, rel=1e-9)
  assert found['zeros'] == pytest.approx(((a == 0).mean() + (b == 0).mean()) / 2)
  assert 0 < found['zeros'] < 1


def test_geometry_by_layer():
  def record(layer, s_R, sigma):
    shares = {'s_R': s_R, 'c_R': 0.5, 'S_H': 0.0, 'alpha_R': 1.0}
    name = f'model.layers.{layer}.mlp.up_proj.weight'
    heads = {'sigma': [[sigma], [0.0]], 'delta_norm': [2.0, 0.0]}
    return {'name': name, 'rule': 'method', **shares, **heads}

  bias = {'name': 'model.layers.2.bias', 'rule': 'task_arithmetic'}
  records = [record(10, 0.2, 2.0), bias, record(2, 0.1, 1.0), record(10, 0.4, 0.0)]
  found = probes.by_layer(records)
  assert list(found) == ['2', '10']
  # An expert without a change has no energy: the mean of 1/4 and 0; of 1, 0, 0, 0.
  assert found['2']['head share'] == pytest.approx(1 / 8)
  assert found['10']['head share'] == pytest.approx(1 / 4)
  assert found['10']['s_R'] == pytest.approx(0.3)


def test_what_is_compared():
  entries = lab._entries(4)
  settings = {name: entry.setting for name, entry in entries.items()}
  assert settings['resmerge'] == settings['tsv'] == 'A.2, authors'
  assert (settings['ties'], settings['ties, default']) == ('A.2', 'authors')
  assert settings['retention'] == 'ours'
  assert settings['resmerge, no head'] == 'ablation'
  # Those of two experts, of one, probes, and sweeps.
  assert not {'slerp', 'nearswap', 'head_only', 'ablations'} & settings.keys()
  assert 'slerp' in lab._entries(2)
  for entry in entries.values():
    assert entry.params is not None
