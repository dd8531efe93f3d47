"""The float64 oracles agree with the golden files, and with themselves at the edges."""

from typing import Any

import numpy as np
import pytest

from tests import golden_cases
from tests.golden_cases import Case, Output, to_float64
from tests.oracles.resmerge import head, resmerge
from tests.oracles.task_arithmetic import task_arithmetic

EXACT_RUNS = [
  pytest.param(case, output, id=output.file)
  for case in golden_cases.cases()
  for output in golden_cases.outputs(case, ['resmerge'])
  if output.engine == 'own_float64'
]
TA_RUNS = [
  pytest.param(case, output, id=output.file)
  for case in golden_cases.cases()
  for output in golden_cases.outputs(case, ['ta'])
]
RESMERGE_LABELS = [
  pytest.param(case, output, id=f'{case.name}-{output.label}')
  for case in golden_cases.cases()
  for output in golden_cases.outputs(case, ['resmerge'])
  if golden_cases.reference(case, output) is output  # one engine of each run
]


def oracle(case: Case, output: Output, name: str) -> tuple[np.ndarray, dict[str, Any]]:
  """ResMerge without the guard, which the golden float64 files do not have."""
  params = {**output.hyper}
  return resmerge(
    case.deltas[name],
    variant=output.variant,
    family=case.tensors[name]['family'],
    head_rank=params.pop('k'),
    guard=False,
    **params,
  )


def matrices(case: Case) -> list[str]:
  return [name for name, info in case.tensors.items() if info['rule'] == 'resmerge']


@pytest.mark.parametrize(('case', 'output'), EXACT_RUNS)
def test_resmerge_update_equals_the_float64_file(case: Case, output: Output):
  relative = 1e-6 if case.name == 'opposite_n2' else 1e-9
  want = golden_cases.load(output.file)
  for name, deltas in case.deltas.items():
    if case.tensors[name]['rule'] == 'resmerge':
      update, _ = oracle(case, output, name)
    else:
      update = task_arithmetic(deltas)
    want_update = want[name] - to_float64(case.base[name])
    error = np.linalg.norm(update - want_update)
    assert error <= relative * np.linalg.norm(want_update) + 1e-12, name


@pytest.mark.parametrize(('case', 'output'), RESMERGE_LABELS)
def test_resmerge_scalars_equal_the_index(case: Case, output: Output):
  for name in matrices(case):
    want = case.diagnostics[output.label][name]
    _, got = oracle(case, output, name)
    keys = set(got)
    if max(want['norm_R']) < 1e-12:  # directions of rounding noise
      keys -= {'s_R', 'c_R', 'score', 'beta', 'alpha_R'}
    assert got['fallback'] == want['fallback'], name
    for key in keys - {'fallback'}:
      np.testing.assert_allclose(
        got[key], want[key], rtol=1e-8, atol=1e-10, err_msg=f'{name} {key}'
      )


@pytest.mark.parametrize(('case', 'output'), TA_RUNS)
def test_task_arithmetic_agrees_with_the_released_code(case: Case, output: Output):
  want = golden_cases.load(output.file)
  got = dict(case.base)
  for name, deltas in case.deltas.items():
    update = task_arithmetic(deltas, reduce=output.variant)
    got[name] = (to_float64(case.base[name]) + update).astype(want[name].dtype)
  golden_cases.assert_close_to_golden(got, case, output)


def test_guard_changes_only_vanishing_sums():
  case = golden_cases.case('opposite_n2')
  deltas, guarded = case.deltas, {}
  for name in matrices(case):
    update, found = resmerge(deltas[name], family=case.tensors[name]['family'])
    guarded[name] = found['fallback']
    if found['fallback']:
      np.testing.assert_array_equal(update, 0.0)
  assert guarded == {
    'model.layers.0.self_attn.q_proj.weight': 'cancelled',
    'model.layers.0.mlp.down_proj.weight': 'cancelled',
    'model.connector.weight': None,  # ||Q|| = 1.7e-5 N: just above
  }


def test_ablations():
  deltas = golden_cases.case('general_n3').deltas['model.layers.0.mlp.up_proj.weight']
  heads = [head(d, 2) for d in deltas]
  mean_head = sum(heads) / 3
  mean_residual = sum(deltas) / 3 - mean_head

  def merge(**settings):
    return resmerge(deltas, family='ffn', head_rank=2, **settings)

  np.testing.assert_allclose(
    merge(backbone='mean', rho=0.0)[0], mean_residual, atol=1e-15
  )
  np.testing.assert_allclose(merge(backbone='none')[0], mean_head, atol=1e-15)
  update, gated = merge()
  bare, without_head = merge(rho=0.0)
  ungated_update, ungated = merge(head_gate='none')
  assert without_head['norm_C'] == 0.0
  assert 0.0 < gated['S_H'] < ungated['S_H'] == 1.0
  np.testing.assert_allclose(ungated['norm_C'], 0.2 * ungated['norm_A'], rtol=1e-6)
  np.testing.assert_allclose(
    update - bare, gated['S_H'] * (ungated_update - bare), atol=1e-15
  )
  _, open_to_conflict = merge(head_gate='conflict')
  assert gated['S_H'] < open_to_conflict['S_H'] <= 1.0


def test_family_scale_replaces_the_preset():
  deltas = golden_cases.case('general_n2').deltas['model.layers.0.mlp.up_proj.weight']
  preset, _ = resmerge(deltas, family='ffn')
  same, _ = resmerge(deltas, family='ffn', family_scale={'ffn': 0.25})
  missing, found = resmerge(deltas, family='ffn', family_scale={'attention': 1.0})
  np.testing.assert_array_equal(preset, same)
  assert (found['score'], found['beta']) == (0.0, 1.0)
  assert not np.array_equal(preset, missing)


def test_task_arithmetic_weights():
  deltas = [np.full((2, 2), 1.0), np.full((2, 2), 4.0)]
  mean = task_arithmetic(deltas, weights=[1, 3], scale=2.0)
  total = task_arithmetic(deltas, reduce='sum', weights=[1, 3], scale=2.0)
  np.testing.assert_array_equal(mean, 6.5)
  np.testing.assert_array_equal(total, 26.0)


@pytest.mark.parametrize('k', [1, 3, 9])
def test_head_is_the_best_approximation(k: int):
  delta = np.random.default_rng(0).standard_normal((9, 5))
  sigma = np.linalg.svd(delta, compute_uv=False)
  error = np.linalg.norm(delta - head(delta, k))
  np.testing.assert_allclose(error, np.linalg.norm(sigma[k:]), atol=1e-13)
  np.testing.assert_array_equal(head(np.zeros((3, 4)), k), 0.0)
