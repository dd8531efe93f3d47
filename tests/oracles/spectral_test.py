"""The oracles of TSV, ISO-C and ISO-CTS agree with all golden outputs."""

from typing import Any

import numpy as np
import pytest

from tests import golden_cases
from tests.golden_cases import Case, Output, to_float64
from tests.oracles import spectral
from tests.oracles.task_arithmetic import task_arithmetic

ORACLES = {'tsv': spectral.tsv, 'iso_c': spectral.iso_c, 'iso_cts': spectral.iso_cts}
NAMES = {'tsvm': 'tsv', 'iso_c': 'iso_c', 'iso_cts': 'iso_cts'}  # in the index
# Singular values below this share of the largest are rounding noise of float32 runs;
# where a result depends on one, they differ from each other (spectral.weakest).
ILL_POSED = 1e-5
RUNS = [
  pytest.param(case, output, id=output.file)
  for case in golden_cases.cases()
  for output in golden_cases.outputs(case, NAMES)
]


def settings(output: Output) -> dict[str, Any]:
  hyper = output.hyper
  if output.method != 'iso_cts':
    return {}
  return {'common_fraction': hyper['common_space_fraction']}


@pytest.mark.parametrize(('case', 'output'), RUNS)
def test_agrees_with_the_golden_output(case: Case, output: Output):
  method, want = NAMES[output.method], golden_cases.load(output.file)
  for name, deltas in case.deltas.items():
    update = to_float64(want[name]) - to_float64(case.base[name])
    if deltas[0].ndim != 2:
      ulp = np.spacing(np.abs(want[name]).max())  # one for the mean, one for the sum
      np.testing.assert_allclose(update, task_arithmetic(deltas), rtol=0, atol=2 * ulp)
      continue
    weakest = spectral.weakest(method, deltas, **settings(output))
    assert (name in output.ill_posed) == (weakest < ILL_POSED), (name, weakest)
    if name not in output.ill_posed:
      got = ORACLES[method](deltas, **settings(output))
      limit = golden_cases.spectral_limit(update, output.engine)
      assert np.linalg.norm(got - update) <= limit, name


@pytest.mark.parametrize(
  ('rank', 'n', 'fraction', 'want'),
  [(25, 2, 0.8, (21, 2)), (35, 2, 0.8, (27, 4)), (3584, 3, 0.8, (2867, 239)),
   (2560, 3, 0.8, (2047, 171)), (4, 3, 0.8, (4, 0))],
)  # fmt: skip
def test_split_rounds_halves_to_even(
  rank: int, n: int, fraction: float, want: tuple[int, int]
):
  assert spectral.split(rank, n, fraction) == want
