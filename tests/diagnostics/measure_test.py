"""What is measured, against float64 and the golden diagnostics, on several meshes."""

import numpy as np
import pytest

from resmerge_jax.diagnostics import measure as measuring
from resmerge_jax.diagnostics.measure import Settings, measure, open_sources
from resmerge_jax.errors import InputError
from resmerge_jax.linalg.head import ritz_size
from tests import golden_cases, groups, several
from tests.oracles import diagnostics as oracle

BF16_BITS = 8  # of the mantissa, with the leading one
MEMORY = several.SETTINGS['memory_budget']
UP = 'model.layers.0.mlp.up_proj.weight'


def run(group, merged=None, **settings):
  fields = {'memory_budget': MEMORY, 'threshold': 1e-3, **settings}
  opened = open_sources(group.base, group.experts, Settings(**fields), merged=merged)
  return {record['name']: record for record in measure(opened)}


@pytest.fixture(scope='module')
def group(tmp_path_factory):
  return several.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='module')
def weights(group):
  return [groups.load(path) for path in (group.base, *group.experts)]


@pytest.fixture(scope='module')
def merged(group, tmp_path_factory):
  output = tmp_path_factory.mktemp('merged') / 'out'
  groups.merge(group, output, method=groups.MEAN, output_dtype='float32')
  return output


@pytest.fixture(scope='module')
def records(group, merged):
  """With everything that can be measured, on all eight devices."""
  return run(group, merged, effective_rank=True)


def updates(weights, name):
  base, *experts = (w[name].astype(np.float64) for w in weights)
  return base, experts, [e - base for e in experts]


def assert_close(got, want, name, **limits):
  """None where there is no number, on both sides."""
  if isinstance(want, list):
    assert len(got) == len(want), name
    for a, b in zip(got, want, strict=True):
      assert_close(a, b, name, **limits)
  elif want is None or got is None:
    assert got is want, name
  else:
    np.testing.assert_allclose(got, want, err_msg=name, **limits)


def test_entries(records, weights):
  for name, record in records.items():
    if record['rule'] == 'base':
      assert set(record) == {'name', 'family', 'rule', 'shape', 'layer'}
      continue
    base, experts, _ = updates(weights, name)
    for field, want in oracle.of_entries(base, experts, 1e-3, BF16_BITS).items():
      # Counts are exact; sums of float32 keep six digits, cosines near 0 in absolute terms.
      assert_close(record[field], want, f'{name} {field}', rtol=2e-6, atol=2e-6)


def test_matrices(records, weights):
  for name, record in records.items():
    if record['rule'] != 'method':
      assert 'sigma' not in record
      continue
    _, _, d = updates(weights, name)
    # Two values of CLOSE differ by 1e-5: float64 splits them, but what is computed in
    # float32 of the head is as sure as that gap.
    near = name == several.CLOSE
    n_energies = ritz_size(1, min(record['shape']))
    for field, want in oracle.of_matrix(d, 1, n_energies).items():
      limit = 2e-5
      if near or field in ('energy', 'sigma_next', 'gap', 'stable_rank_residual'):
        limit = 5e-3  # beyond the head a Ritz value is only a bound
      want = (
        want if np.isscalar(want) else [*map(np.ndarray.tolist, map(np.array, want))]
      )
      assert_close(record[field], want, f'{name} {field}', rtol=limit, atol=limit)
    assert record['effective_rank_by'] == 'exact'
    assert record['effective_rank_error'] == [0.0] * several.N_EXPERTS
    assert record['float64_head'] == [near] * several.N_EXPERTS
    # A sample of small entries of full rank may miss a value by the limit.
    assert min(record['sample_rank']) > 0.9 * min(64, *record['shape'])


def test_energies_beyond_the_head_are_bounds_from_below(records, weights):
  _, _, d = updates(weights, UP)
  want = np.array(oracle.of_matrix(d, 1, 4)['energy'])
  got = np.array(records[UP]['energy'])
  assert got.shape == want.shape
  assert (got <= want + 1e-6).all()  # rounding


def test_distances_of_the_merged_model(records, weights, merged):
  of_merged = groups.load(merged)
  for name, record in records.items():
    if record['rule'] == 'base':
      continue
    _, experts, _ = updates(weights, name)
    want = [np.linalg.norm(of_merged[name] - e) for e in experts]
    # By inner products, in float32.
    assert_close(record['distance'], want, name, rtol=1e-5)


# Rows split over devices, and one matrix after another on one.
@pytest.mark.parametrize('mesh', ['layer:2,row:4', 'layer:1,row:1'])
def test_the_mesh_changes_only_rounding(records, group, mesh):
  other = run(group, mesh=mesh)
  for name, record in other.items():
    for field, value in record.items():
      if name == several.CLOSE and field not in ('delta_norm', 'sigma', 'changed'):
        continue  # which of two equal directions is the head may change
      if field in ('head_error_estimate', 'certified'):
        continue
      want = records[name][field]
      if isinstance(value, str | bool) or value is None:
        assert value == want
      else:
        near = 1e-3 if field in ('energy', 'sigma_next', 'gap') else 1e-4
        if field == 'stable_rank_residual':
          near = 1e-3
        assert_close(value, want, f'{name} {field}', rtol=near, atol=near)


def test_an_estimated_effective_rank_says_so(weights, tmp_path, monkeypatch):
  monkeypatch.setattr(measuring, 'EXACT_SIDE', several.THIN_ROWS)
  base, *experts = ({UP: w[UP]} for w in weights)
  got = run(groups.write(tmp_path, base, experts), effective_rank=True)[UP]
  _, _, d = updates(weights, UP)
  want = oracle.of_matrix(d, 1, 4)
  assert got['effective_rank_by'] == 'estimate'
  for field in ('effective_rank', 'effective_rank_residual'):
    for value, error, exact in zip(
      got[field], got[f'{field}_error'], want[field], strict=True
    ):
      assert 0 < error < 0.1 * exact
      assert abs(value - exact) < 3 * error  # standard errors


# One matrix of each: every shape is a program to compile.
@pytest.mark.parametrize(
  ('name', 'tensor'),
  [
    ('general_n3', 'model.layers.0.mlp.up_proj.weight'),
    ('zero_expert_n3', 'model.layers.0.self_attn.q_proj.weight'),
  ],
)
def test_golden_diagnostics(name, tensor, tmp_path):
  case = golden_cases.case(name)
  base, *experts = ({tensor: w[tensor]} for w in (case.base, *case.experts))
  records = run(groups.write(tmp_path, base, experts))
  want, got = case.diagnostics['paper'][tensor], records[tensor]
  for field in ('s_R', 'c_R', 'S_H', 'norm_R', 'norm_H'):
    assert_close(got[field], want[field], f'{tensor} {field}', rtol=5e-5, atol=5e-5)
  sigma, further = (
    np.array(want['sigma_top3'])[:, 0],
    np.array(want['sigma_top3'])[:, 1],
  )
  assert_close(got['sigma'], sigma[:, None].tolist(), tensor, rtol=1e-5)
  assert_close(got['sigma_next'], further.tolist(), tensor, rtol=1e-5)
  gaps = [gap or 0.0 for gap in want['rel_gap_at_k']]
  assert_close(got['gap'], gaps, tensor, rtol=1e-5)
  zero = [not norm for norm in want['norm_H']]
  assert [energy is None for energy in got['energy']] == zero


def test_nan_is_refused(tmp_path):
  spoilt = several.write_group(tmp_path)
  several.spoil_last_row(spoilt.experts[1], UP)
  with pytest.raises(InputError, match='NaN or Inf in the weights') as error:
    run(spoilt, mesh='layer:1,row:1')  # compiled for the meshes
  assert f"expert 'e1': {UP}" in str(error.value)


def test_a_threshold_below_zero_is_refused(group):
  with pytest.raises(InputError, match='threshold: got -1, expected 0 or more'):
    run(group, threshold=-1)
