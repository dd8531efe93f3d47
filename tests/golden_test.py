"""Merged golden groups agree with the golden outputs: in memory and as folders."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import resmerge_jax
from tests import golden_cases
from tests.golden_cases import BF16, Case, Output

# What the record says the backbone is made of, for each `fallback` of the index.
# 'cancelled' and 'low_coherence' give the same weights; rounding picks one.
BRANCHES = {
  None: 'consensus',
  'low_coherence': 'mean',
  'cancelled': 'mean',
  'all_zero': 'zero',
}


def output_dtypes(case: Case, output: Output) -> list[str]:
  """'base' or 'float32', whichever gives the stored dtype.

  Both for a float64 file beside bfloat16 weights: unrounded is the sharper test,
  rounded is what users get.
  """
  if all(info['dtype'] != 'bfloat16' for info in case.tensors.values()):
    return ['base']
  if output.engine == 'own_float64':
    return ['base', 'float32']
  stored = golden_cases.load(output.file).values()
  return ['base' if any(x.dtype == BF16 for x in stored) else 'float32']


RUNS = [
  pytest.param(case, output, dtype, id=f'{output.file}-{dtype}')
  for case in golden_cases.cases()
  for output in golden_cases.outputs(case, ['resmerge', 'ta'])
  for dtype in output_dtypes(case, output)
]
SCALARS = [
  pytest.param(case, output, id=f'{case.name}-{output.label}')
  for case in golden_cases.cases()
  for output in golden_cases.outputs(case, ['resmerge'])
  if golden_cases.reference(case, output) is output
]


def method_settings(output: Output) -> tuple[str, dict[str, Any]]:
  """The method's name and parameters here, for a run of the index."""
  if output.method == 'ta':
    return 'task_arithmetic', {'reduce': output.variant, 'scale': 1.0}
  hyper = {**output.hyper, 'variant': output.variant}
  return 'resmerge', {'head_rank': hyper.pop('k'), **hyper}


def merge(case: Case, output: Output, output_dtype: str = 'base') -> Any:
  method, params = method_settings(output)
  return _merge(case.name, method, tuple(params.items()), output_dtype)


@functools.cache  # both engines of a run need the same merge
def _merge(name: str, method: str, params: tuple[Any, ...], output_dtype: str) -> Any:
  case = golden_cases.case(name)
  return resmerge_jax.merge_state_dicts(
    case.base,
    case.experts,
    method=method,
    params=dict(params),
    output_dtype=output_dtype,
  )


@pytest.mark.parametrize(('case', 'output', 'output_dtype'), RUNS)
def test_merged_weights(case: Case, output: Output, output_dtype: str):
  got = merge(case, output, output_dtype).tensors
  for name, base in case.base.items():
    kept = output_dtype == 'base' or case.tensors[name]['rule'] == 'copy_base'
    assert got[name].dtype == (base.dtype if kept else np.float32), name
  golden_cases.assert_close_to_golden(got, case, output)


@pytest.mark.parametrize(('case', 'output'), SCALARS)
def test_records_hold_the_scalars_of_the_equations(case: Case, output: Output):
  records = {record['name']: record for record in merge(case, output).records}
  assert set(records) == set(case.tensors)
  for name, want in case.diagnostics[output.label].items():
    if want['mode'] == 'resmerge':
      assert_record(records[name], want, output.variant, name)


def assert_record(
  record: Mapping[str, Any], want: Mapping[str, Any], variant: str, name: str
) -> None:
  """Compares a matrix's record with the index as far as float32 determines it."""
  assert record['family'] == want['family'], name
  keys = {'n_R', 's_R', 'c_R', 'S_H', 'beta', 'alpha_R'}
  if max(want['norm_R']) < 1e-6 * max(want['norm_H']):
    keys = {'n_R'}  # residuals, and with them directions, are rounding noise
  elif want['norm_sum_q'] < 1e-3:
    keys -= {'c_R', 'alpha_R'}  # a root of cancelled terms
  for key in keys:
    assert math.isclose(record[key], want[key], rel_tol=5e-5, abs_tol=5e-5), (
      f'{name} {key}: {record[key]}, expected {want[key]}'
    )
  guarded = variant == 'paper' and want['norm_sum_q'] < 1e-5 * want['N']
  if want['N'] > 1:  # with one expert both branches are the same
    assert record['branch'] == ('zero' if guarded else BRANCHES[want['fallback']]), name
