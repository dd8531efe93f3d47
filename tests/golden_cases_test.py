"""The golden comparison accepts the released code and refuses small errors."""

import numpy as np
import pytest

from tests import golden_cases
from tests.golden_cases import BF16, Case, Output, to_float64

OFFICIAL = [
  pytest.param(case, output, id=output.file)
  for case in golden_cases.cases()
  for output in golden_cases.outputs(case, ['resmerge', 'ta'])
  if output.engine == 'official_fp32'
]
MATRIX = 'model.layers.0.mlp.up_proj.weight'
VECTOR = 'model.norm.weight'


def find(case_name: str, file: str) -> tuple[Case, Output]:
  case = golden_cases.case(case_name)
  return case, next(o for o in case.outputs if o.file == f'{case_name}.out.{file}')


def refused(case: Case, output: Output, name: str, wrong: np.ndarray) -> str:
  """The message for the golden weights with one tensor replaced."""
  got = {**golden_cases.load(output.file), name: wrong}
  with pytest.raises(AssertionError) as error:
    golden_cases.assert_close_to_golden(got, case, output)
  return str(error.value)


def test_every_file_belongs_to_a_case():
  named = {
    file
    for case in golden_cases.cases()
    for file in [case.base_file, *case.expert_files, *(o.file for o in case.outputs)]
  }
  assert len(golden_cases.cases()) == 18
  assert named == {path.name for path in golden_cases.FOLDER.glob('*.safetensors')}


@pytest.mark.parametrize(('case', 'output'), OFFICIAL)
def test_released_code_is_within_the_tolerances(case: Case, output: Output):
  golden_cases.assert_close_to_golden(golden_cases.load(output.file), case, output)


def test_float64_file_is_the_reference_of_both_engines():
  case, official = find('general_n2', 'resmerge_release_k2.safetensors')
  best = golden_cases.reference(case, official)
  assert best.file == 'general_n2.out.resmerge_release_k2_f64.safetensors'
  assert official.label == best.label == 'release_k2'
  case, mean = find('general_n2', 'ta_mean.safetensors')
  assert golden_cases.reference(case, mean) is mean


def test_matrix_limit():
  case, output = find('general_n3', 'resmerge_release_f64.safetensors')
  want = golden_cases.load(output.file)[MATRIX]
  update = want - to_float64(case.base[MATRIX])
  inside = {**golden_cases.load(output.file), MATRIX: want + 4e-5 * update}
  golden_cases.assert_close_to_golden(inside, case, output)
  message = refused(case, output, MATRIX, want + 4e-4 * update)
  assert f'{MATRIX}: off by 3.7' in message
  assert 'general_n3 against general_n3.out.resmerge_release_f64' in message


def test_vectors_get_two_float32_units():
  case, output = find('general_n3', 'ta_mean.safetensors')
  want = golden_cases.load(output.file)[VECTOR]
  ulp = np.spacing(np.abs(want).max())
  inside = {**golden_cases.load(output.file), VECTOR: want + 2 * ulp}
  golden_cases.assert_close_to_golden(inside, case, output)
  message = refused(case, output, VECTOR, want + 3 * ulp)
  assert f'{VECTOR}: off by 3 float32 units' in message


def test_bfloat16_gets_one_unit_on_one_per_cent():
  case, output = find('bf16_n3', 'resmerge_release_f64.safetensors')
  rounded = {n: x.astype(BF16) for n, x in golden_cases.load(output.file).items()}

  def moved(entries: int, units: int) -> dict[str, np.ndarray]:
    wrong = rounded[MATRIX].copy()
    wrong.view(np.uint16).reshape(-1)[:entries] += np.uint16(units)
    return {**rounded, MATRIX: wrong}

  golden_cases.assert_close_to_golden(moved(14, 1), case, output)
  with pytest.raises(AssertionError, match='15 of 1440 off, by 1 bf16 units'):
    golden_cases.assert_close_to_golden(moved(15, 1), case, output)
  with pytest.raises(AssertionError, match='1 of 1440 off, by 2 bf16 units'):
    golden_cases.assert_close_to_golden(moved(1, 2), case, output)


def test_zero_has_one_bfloat16_position():
  case, output = find('bf16_n3', 'ta_mean.safetensors')
  numbers = np.array([-0.0, 0.0, 1e-40, -1e-40], np.float32).astype(BF16)
  order = golden_cases._bf16_order(numbers)
  assert order[0] == order[1] == 0
  assert order[2] == -order[3] > 0
  assert golden_cases.reference(case, output) is output


def test_integers_and_unstable_tensors():
  case, output = find('nonfloat_n2', 'resmerge_release.safetensors')
  buffer = 'model.rotary.position_ids'
  wrong = golden_cases.load(output.file)[buffer] + 1
  assert 'not copied from the base' in refused(case, output, buffer, wrong)
  case, output = find('opposite_n2', 'resmerge_paper_f64.safetensors')
  assert len(output.float32_unstable) == 2
  base_there = {n: case.base[n] for n in output.float32_unstable}
  got = {**golden_cases.load(output.file), **base_there}
  golden_cases.assert_close_to_golden(got, case, output)


def test_float32_is_no_substitute_for_bfloat16():
  case, output = find('bf16_n3', 'ta_mean.safetensors')
  wrong = golden_cases.load(output.file)[MATRIX].astype(np.float32)
  assert 'dtype float32, but the golden file has bfloat16' in refused(
    case, output, MATRIX, wrong
  )
