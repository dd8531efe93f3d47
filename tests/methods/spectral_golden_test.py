"""TSV, ISO-C and ISO-CTS agree with the golden outputs (tests/golden/README.md).

Every tensor of two dimensions is merged, embeddings included. The released code takes
the mean of all others, which tests/oracles/spectral_test.py looks at.
"""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.iso import IsoC
from resmerge_jax.methods.iso_cts import IsoCts
from resmerge_jax.methods.table import method_of
from resmerge_jax.methods.tsv import Tsv
from tests import golden_cases
from tests.golden_cases import BF16, Case, Output, to_float64
from tests.methods import groups
from tests.methods.float64_runs import from_stored
from tests.oracles import spectral
from tests.oracles.spectral_test import ILL_POSED, NAMES, ORACLES, settings

METHODS = {'tsv': Tsv, 'iso_c': IsoC, 'iso_cts': IsoCts}
CASES = [
  pytest.param(case, id=case.name)
  for case in golden_cases.cases()
  if golden_cases.outputs(case, NAMES)
]


def params_of(output: Output) -> Any:
  return METHODS[NAMES[output.method]](**settings(output))


@functools.cache
def program(all_params: tuple[Any, ...]) -> Any:
  """Updates and stats of several methods: one program, as compiling takes the time."""

  def all_of(base_RxC: jax.Array, experts_NxRxC: jax.Array) -> list[tuple]:
    return [
      from_stored(params, TaskVectors(base_RxC, experts_NxRxC)) for params in all_params
    ]

  return groups.compiled(all_of)


def stored(array: np.ndarray) -> np.ndarray:
  return array.view(np.uint16) if array.dtype == BF16 else array


@pytest.mark.parametrize('case', CASES)
def test_agrees_with_the_golden_outputs(case: Case):
  runs = golden_cases.outputs(case, NAMES)
  all_params = tuple(dict.fromkeys(map(params_of, runs)))
  for name, deltas in case.deltas.items():
    if deltas[0].ndim != 2:
      continue
    experts_NxRxC = np.stack([stored(expert[name]) for expert in case.experts])
    with jax.enable_x64(True):
      results = program(all_params)(stored(case.base[name]), experts_NxRxC)
    got = dict(zip(all_params, results, strict=True))
    for output in runs:
      params = params_of(output)
      assert_close(*got[params], params, case, output, name)


def assert_close(
  update_RxC: jax.Array,
  stats: dict[str, jax.Array],
  params: Any,
  case: Case,
  output: Output,
  name: str,
) -> None:
  """With the output, unless ill-posed, and with the oracle wherever float64 can."""
  where = f'{output.file} {name}'
  got = np.asarray(update_RxC, np.float64)
  branch = method_of(params).branches[int(stats['branch'])]
  assert np.isfinite(got).all(), where
  method, deltas = NAMES[output.method], case.deltas[name]
  weakest = spectral.weakest(method, deltas, **settings(output))
  if weakest < 1e-12:  # nothing there but rounding, even in float64
    assert branch in ('ill_posed', 'single'), where
    return
  exact = ORACLES[method](deltas, **settings(output))
  error = np.linalg.norm(got - exact) / max(np.linalg.norm(exact), 1e-30)
  # Products in float32 and rounding leave up to 4e-7. What is worse the estimate tells.
  assert error <= 1e-6 + float(stats.get('error', 0)), where
  assert error <= 5e-5, where
  assert branch != 'ill_posed', where
  if weakest >= ILL_POSED:
    want = to_float64(golden_cases.load(output.file)[name])
    update = want - to_float64(case.base[name])
    limit = golden_cases.spectral_limit(update, output.engine)
    assert np.linalg.norm(got - update) <= limit, where
