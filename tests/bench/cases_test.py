"""What a benchmark may be asked for."""

import pytest

from resmerge_jax.bench import cases
from resmerge_jax.bench.cases import Sweep, benchmark
from resmerge_jax.errors import InputError
from tests.bench.made_up import case


def test_defaults_are_the_models_own():
  request = benchmark('qwen2.5-0.5b')

  (only,) = request.cases
  assert str(only) == 'qwen2.5-0.5b: 24 layers, 3 experts'
  assert cases.as_json(only)['n_parameters'] == 494_032_768
  assert request.rivals == ('floor', 'mergekit')


def test_reductions_and_order_of_rivals():
  request = benchmark(
    'qwen2.5-7b', layers=1, vocab_rows=1024, rivals=['full_svd', 'floor']
  )

  assert str(request.cases[0]) == (
    'qwen2.5-7b: 1 layer, 3 experts, 1024 vocabulary rows'
  )
  assert request.rivals == ('floor', 'full_svd')


def test_sweeps():
  request = benchmark('tiny', sweep='layers=4,1,2')
  assert request.sweep == Sweep('layers', (1, 2, 4))
  assert request.cases == tuple(case(layers=n) for n in (1, 2, 4))

  request = benchmark('tiny', sweep='n_experts=2,8')
  assert request.cases == tuple(case(n_experts=n) for n in (2, 8))


def test_everything_wrong_is_told_at_once():
  with pytest.raises(InputError) as error:
    benchmark(
      'tiny',
      layers=5,
      n_experts=9,
      vocab_rows=100,
      rivals=['floor', 'magic'],
      svd_layers=0,
      repeat=0,
      sweep='hidden=1,2',
    )
  assert error.value.problems == (
    "sweep 'hidden=1,2': expected layers=2,4,8 or n_experts=2,4,8, at least two numbers",
    'layers 5: expected 1 to 4',
    'vocab_rows 100: expected 512 to 512',
    'n_experts 9: expected 2 to 8',
    "rival 'magic': expected some of floor, mergekit, full_svd",
    'svd_layers 0: expected 1 to 5',
    'repeat 0: expected 1 or more',
  )


@pytest.mark.parametrize(
  ('settings', 'problem'),
  [
    ({'sweep': 'layers=2'}, "sweep 'layers=2': expected layers=2,4,8 or"),
    ({'sweep': 'layers=a,b'}, "sweep 'layers=a,b': expected"),
    ({'sweep': 'layers=1,9'}, 'layers 9: expected 1 to 4'),
    ({'sweep': 'n_experts=1,2'}, 'n_experts 1: expected 2 to 8'),
    ({'sweep': 'layers=1,2', 'layers': 4}, 'layers: given and swept over'),
    ({'sweep': 'layers=1,4', 'svd_layers': 2}, 'svd_layers 2: expected 1 to 1'),
  ],
)
def test_bad_settings(settings, problem):
  with pytest.raises(InputError, match='cannot run this benchmark') as error:
    benchmark('tiny', **settings)
  assert error.value.problems[0].startswith(problem)


def test_unknown_shape():
  with pytest.raises(InputError, match="shape 'gpt-2': expected one of tiny, qwen2"):
    benchmark('gpt-2')


def test_a_sweep_needs_matplotlib_before_it_measures(monkeypatch):
  monkeypatch.setattr(cases, 'is_installed', lambda name: name != 'matplotlib')
  with pytest.raises(InputError, match=r"pip install 'resmerge-jax\[plots\]'"):
    benchmark('tiny', sweep='layers=1,2')
  benchmark('tiny')
