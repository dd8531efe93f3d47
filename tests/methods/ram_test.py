"""RAM agrees with the authors' code on the golden groups, and with float64."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import TensorFacts
from resmerge_jax.methods.ram import METHOD, MODES, Ram
from tests import golden_cases
from tests.golden_cases import Case, Output, to_float64
from tests.methods import groups
from tests.oracles import ram as oracle

SHAPE = 96, 64  # the largest golden tensor: all are padded to it, to share programs
RUNS = [
  pytest.param(case, output, id=output.file)
  for case in golden_cases.cases()
  for output in golden_cases.outputs(case, ['ram'])
]
Tensors = Mapping[str, TaskVectors]


@functools.cache
def measured(params: Ram) -> Any:
  def one(delta_NxRxC: TaskVectors) -> Any:
    (scan,) = METHOD.scans(params)
    context = groups.context(len(delta_NxRxC))
    return scan.measure(delta_NxRxC, context=context, params=params)

  return groups.compiled(one)


def totals(params: Ram, tensors: Tensors, copies: Mapping[str, int]) -> Any:
  """Sums over the model, as the host adds them up."""
  sums: dict[str, Any] = {}
  for name, delta_NxRxC in tensors.items():
    for key, value in measured(params)(delta_NxRxC).items():
      assert value.dtype == np.int32
      counted = copies.get(name, 1) * np.asarray(value, np.int64)
      sums[key] = sums.get(key, 0) + counted
  return {'': sums}


def found(
  params: Ram, tensors: Tensors, copies: Mapping[str, int] | None = None
) -> groups.Found:
  facts = {
    name: TensorFacts(x.shape, layer=-1, n_layers=2) for name, x in tensors.items()
  }
  result: groups.Found = {}
  for scan in METHOD.scans(params):
    assert scan.whole_model
    result = scan.finish(totals(params, tensors, copies or {}), facts, params)['']
  return result


def merge_all(
  params: Ram, tensors: Tensors, **found_args: Any
) -> dict[str, np.ndarray]:
  what = found(params, tensors, **found_args)
  return {
    name: groups.merge_stored(params, x, found=what)[0] for name, x in tensors.items()
  }


def padded(array: np.ndarray) -> np.ndarray:
  """float32, zeros behind: entries that nobody changed."""
  out = np.zeros(SHAPE, np.float32)
  out.flat[: array.size] = array.ravel()
  return out


def tensors_of(case: Case) -> Tensors:
  return {
    name: TaskVectors(
      padded(to_float64(base)),
      np.stack([padded(to_float64(expert[name])) for expert in case.experts]),
    )
    for name, base in case.base.items()
  }


def params_of(output: Output) -> Ram:
  hyper = output.hyper
  return Ram(
    mode=hyper['mode'],
    threshold=hyper['threshold'],
    rescale=hyper.get('r', 1.0),
    target=hyper.get('target', 0),
  )


@pytest.mark.parametrize(('case', 'output'), RUNS)
def test_agrees_with_the_authors_code(case: Case, output: Output):
  params = params_of(output)
  got = {}
  for name, update_RxC in merge_all(params, tensors_of(case)).items():
    base = to_float64(case.base[name]).astype(np.float32)
    update = update_RxC.flat[: base.size].astype(np.float32)
    got[name] = base + update.reshape(base.shape)
  golden_cases.assert_close_to_golden(got, case, output)
  if 'unique_scale' in output.hyper and params.rescale > 1:
    scale_N = found(params, tensors_of(case))['scale_N']
    want_N = output.hyper['unique_scale']
    np.testing.assert_allclose(scale_N, want_N, rtol=1e-7)  # rounded to float32


def test_counts_are_those_of_the_authors_code():
  index = json.loads((golden_cases.FOLDER / 'index.json').read_text())
  want = {case['name']: case['ram_counts'] for case in index['cases']}
  for case in {run.values[0].name: run.values[0] for run in RUNS}.values():
    sums = totals(Ram(), tensors_of(case), {})['']
    assert sums['changed_N'].tolist() == want[case.name]['changed'], case.name
    assert sums['shared_N'].tolist() == want[case.name]['shared'], case.name


def sparse(n: int, seed: int = 0) -> np.ndarray:
  """NxRxC with a third of the entries zero and values that tie."""
  rng = np.random.default_rng([seed, n])
  delta_NxRxC = rng.integers(-6, 7, (n, groups.ROWS, groups.COLS)) / 64.0
  return (delta_NxRxC * (rng.random(delta_NxRxC.shape) < 0.7)).astype(np.float32)


def small(model: Mapping[str, np.ndarray]) -> Tensors:
  return {name: groups.task_vectors(x) for name, x in model.items()}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('n', [1, 2, 4])
def test_agrees_with_the_oracle(mode: str, n: int):
  model = {'a': sparse(n), 'b': sparse(n, 1), 'zero': 0 * sparse(n)}
  params = Ram(mode=mode, rescale=1.5, target=n - 1)
  got = merge_all(params, small(model), copies={'b': 2})
  want = oracle.ram(model, mode=mode, rescale=1.5, target=n - 1, copies={'b': 2})
  for name in model:  # a few float32 units of values up to 1/8
    np.testing.assert_allclose(got[name], want[name], rtol=1e-6, atol=1e-8)
  np.testing.assert_array_equal(got['zero'], 0.0)


def test_a_tied_embedding_counts_twice():
  model = small({'a': sparse(3), 'b': sparse(3, 1)})
  params = Ram(mode='arm-r', rescale=2.0)
  once, twice = found(params, model), found(params, model, {'b': 2})
  assert not np.array_equal(once['scale_N'], twice['scale_N'])


def test_threshold_is_strict_and_float32():
  t = np.float32(1e-5)
  steps = [np.nextafter(t, np.float32(0)), t, np.nextafter(t, np.float32(1))]
  delta_NxRxC = np.tile(np.array(steps, np.float32), (1, groups.ROWS, 3))
  got = merge_all(Ram(mode='arm'), small({'a': delta_NxRxC}))['a']
  want = np.where(delta_NxRxC[0] > t, delta_NxRxC[0], 0.0)
  np.testing.assert_array_equal(got, want)
  assert 0 < np.count_nonzero(got) < got.size


@pytest.mark.parametrize('rescale', [0.5, 1.0])
@pytest.mark.parametrize('mode', ['arm-r', 'arm-r-v2'])
def test_without_rescaling_it_is_arm_to_the_bit(mode: str, rescale: float):
  params = Ram(mode=mode, rescale=rescale)
  assert METHOD.scans(params) == ()
  model = small({'a': sparse(3)})
  want = merge_all(Ram(mode='arm'), model)['a']
  np.testing.assert_array_equal(merge_all(params, model)['a'], want)


@pytest.mark.parametrize('sign', [1, -1])
def test_experts_without_an_entry_of_their_own(sign: int):
  one = np.abs(sparse(1)[0]) + np.float32(0.1)
  model = small({'a': np.stack([one, sign * one])})
  np.testing.assert_array_equal(found(Ram(), model)['scale_N'], np.float32(1.05))
  want = one if sign > 0 else 0 * one
  np.testing.assert_array_equal(merge_all(Ram(), model)['a'], want)


@pytest.mark.parametrize('mode', ['arm', 'arm-r-v2', 'arm-unique'])
def test_rows_may_come_in_blocks(mode: str):
  params = Ram(mode=mode)
  assert not METHOD.whole_matrix(params)
  delta_NxRxC = sparse(3)
  what = found(params, small({'a': delta_NxRxC}))
  whole, *blocks = [
    groups.merge_stored(params, groups.task_vectors(delta_NxRxC[:, rows]), found=what)[
      0
    ]
    for rows in (slice(None), slice(5), slice(5, None))
  ]
  np.testing.assert_array_equal(np.vstack(blocks), whole)


def test_ties_wants_whole_matrices():
  assert METHOD.whole_matrix(Ram(mode='arm-ties'))


def test_ties_of_one_shared_entry_prunes_nothing():
  delta_NxRxC = 0 * sparse(2)
  delta_NxRxC[:, 0, 0] = 0.5, 0.25
  delta_NxRxC[1, 3, 2] = 0.125
  got = merge_all(Ram(mode='arm-ties'), small({'a': delta_NxRxC}))['a']
  want = 0 * delta_NxRxC[0]
  want[0, 0], want[3, 2] = 0.375, 0.125
  np.testing.assert_array_equal(got, want)


def test_target_must_exist():
  with pytest.raises(InputError, match='got 2 experts, expected more than target 2'):
    groups.merge(Ram(mode='arm-unique', target=2), None, sparse(2), None)
  assert METHOD.expects(Ram(mode='arm-unique', target=2), 2)
  assert METHOD.expects(Ram(target=2), 2) is None


@pytest.mark.parametrize(
  'wrong',
  [{'mode': 'arm-r-v3'}, {'threshold': -1.0}, {'rescale': np.nan}, {'target': -1}],
)
def test_parameters_out_of_range(wrong: dict):
  with pytest.raises(InputError, match=next(iter(wrong))):
    Ram(**wrong)
