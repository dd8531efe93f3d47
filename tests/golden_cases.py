"""Reads the golden data and compares with it (tolerances: tests/golden/README.md)."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes  # before safetensors.numpy, which finds bfloat16 through it
import numpy as np
from safetensors.numpy import load_file

FOLDER = pathlib.Path(__file__).parent / 'golden'
BF16 = np.dtype(ml_dtypes.bfloat16)
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Output:
  """One merged state dict of a case."""

  method: str
  variant: str
  engine: str  # 'official_fp32' or 'own_float64'
  hyper: Mapping[str, Any]
  file: str
  float32_unstable: tuple[str, ...] = ()
  ill_posed: tuple[str, ...] = ()

  @property
  def label(self) -> str:
    """Key of this run's diagnostics: the variant, and what was altered."""
    stem = self.file.split('.out.')[1].removesuffix('.safetensors')
    return stem.removesuffix('_f64').removeprefix(f'{self.method}_')

  @property
  def run(self) -> tuple[Any, ...]:
    """Equal for outputs of the same computation by different engines."""
    return self.method, self.variant, tuple(sorted(self.hyper.items()))


@dataclasses.dataclass(frozen=True)
class Case:
  name: str
  n_experts: int
  tensors: Mapping[str, Mapping[str, Any]]  # shape, dtype, rule, family
  outputs: tuple[Output, ...]
  diagnostics: Mapping[str, Mapping[str, Mapping[str, Any]]]  # label -> tensor
  base_file: str
  expert_files: tuple[str, ...]

  @property
  def base(self) -> Tensors:
    return load(self.base_file)

  @property
  def experts(self) -> list[Tensors]:
    return [load(file) for file in self.expert_files]

  @property
  def deltas(self) -> dict[str, list[np.ndarray]]:
    """Exact updates of the floating tensors, float64."""
    return {
      name: [to_float64(expert[name]) - to_float64(base) for expert in self.experts]
      for name, base in self.base.items()
      if self.tensors[name]['rule'] != 'copy_base'
    }


def to_float64(array: np.ndarray) -> np.ndarray:
  """Exact for every dtype of the data; bfloat16 by way of float32."""
  exact = array.astype(np.float32) if array.dtype == BF16 else array
  return exact.astype(np.float64)


@functools.cache
def load(file: str | pathlib.Path) -> Tensors:
  """Name -> array of one file, given relative to the golden folder. Do not modify."""
  return load_file(FOLDER / file)


@functools.cache
def cases() -> tuple[Case, ...]:
  """All cases of the index. Runs the released code could not finish are left out."""
  index = json.loads((FOLDER / 'index.json').read_text())
  return tuple(_case(record) for record in index['cases'])


def case(name: str) -> Case:
  return next(case for case in cases() if case.name == name)


def outputs(case: Case, methods: Collection[str]) -> list[Output]:
  """The outputs of `methods`, as the index names them ('resmerge', 'ta', ...)."""
  return [output for output in case.outputs if output.method in methods]


def _case(record: Mapping[str, Any]) -> Case:
  return Case(
    name=record['name'],
    n_experts=record['n_experts'],
    tensors=record['tensors'],
    outputs=tuple(
      Output(
        method=output['method'],
        variant=output['variant'],
        engine=output['engine'],
        hyper=output['hyper'],
        file=output['file'],
        float32_unstable=tuple(output.get('float32_unstable', ())),
        ill_posed=tuple(output.get('ill_posed', ())),
      )
      for output in record['outputs']
      if output['status'] == 'ok'
    ),
    diagnostics=record['resmerge_diagnostics'],
    base_file=record['files']['base'],
    expert_files=tuple(record['files']['experts']),
  )


def reference(case: Case, output: Output) -> Output:
  """The float64 output of the same run if there is one, else `output`."""
  same = [other for other in case.outputs if other.run == output.run]
  return next((other for other in same if other.engine == 'own_float64'), output)


def assert_close_to_golden(
  got: Mapping[str, np.ndarray], case: Case, output: Output
) -> None:
  """Compares merged weights with the golden ones; lists every tensor that is off.

  Tensors `got` in bfloat16 are held to the bfloat16 rule, others to the rule of the
  tensor and method.
  """
  best = reference(case, output)
  want = load(best.file)
  assert set(got) == set(want)
  problems = [
    f'{name}: {problem}'
    for name in want
    if name not in best.float32_unstable
    and (problem := _difference(np.asarray(got[name]), want[name], name, case, best))
  ]
  assert not problems, f'{case.name} against {best.file}:\n' + '\n'.join(problems)


def _difference(
  got: np.ndarray, want: np.ndarray, name: str, case: Case, output: Output
) -> str:
  """What is wrong, or ''."""
  if got.shape != want.shape:
    return f'shape {got.shape}, expected {want.shape}'
  rule = case.tensors[name]['rule']
  if rule == 'copy_base':
    equal = got.dtype == want.dtype and np.array_equal(got, want)
    return '' if equal else 'not copied from the base'
  if got.dtype == BF16:
    return _bf16_difference(got, want)
  if want.dtype == BF16:
    return f'dtype {got.dtype}, but the golden file has bfloat16'
  if output.method == 'resmerge' and rule == 'resmerge':
    return _matrix_difference(got, want, case.base[name])
  return _ulp_difference(got, want)


def spectral_limit(update: np.ndarray, engine: str) -> float:
  """Of ||got - want|| for a matrix of TSV, ISO-C or ISO-CTS."""
  relative = 5e-5 if engine == 'own_float64' else 1e-4
  return float(relative * np.linalg.norm(update) + 1e-7 * np.sqrt(update.size))


def _bf16_difference(got: np.ndarray, want: np.ndarray) -> str:
  units = np.abs(_bf16_order(got) - _bf16_order(want.astype(BF16)))
  if units.max() <= 1 and np.count_nonzero(units) <= 0.01 * units.size:
    return ''
  return f'{np.count_nonzero(units)} of {units.size} off, by {units.max()} bf16 units'


def _bf16_order(array: np.ndarray) -> np.ndarray:
  """Position of each value in the ordered list of bfloat16 numbers."""
  bits = array.view(np.uint16).astype(np.int64)
  return np.where(bits < 0x8000, bits, 0x8000 - bits)


def _matrix_difference(got: np.ndarray, want: np.ndarray, base: np.ndarray) -> str:
  error = np.linalg.norm(to_float64(got) - to_float64(want))
  update = np.linalg.norm(to_float64(want) - to_float64(base))
  limit = 5e-5 * update + 1e-7 * np.sqrt(want.size)
  return '' if error <= limit else f'off by {error:.3g}, limit {limit:.3g}'


def _ulp_difference(got: np.ndarray, want: np.ndarray) -> str:
  ulp = float(np.spacing(np.abs(want).max().astype(np.float32)))
  error = np.abs(to_float64(got) - to_float64(want)).max() / ulp
  return '' if error <= 2 else f'off by {error:.3g} float32 units at the largest'
