"""Small expert groups on disk, their merge, and what the merged folder holds."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes  # before safetensors.numpy, which finds bfloat16 through it
import numpy as np
from safetensors.numpy import load_file

import resmerge_jax
from resmerge_jax.synthetic import ModelShape, make_group
from tests import folders

# Few different shapes, so few programs to compile; enough rows for row blocks.
# Wide enough for the Krylov solver.
SMALL = ModelShape('qwen2', 136, 160, 2, 2, 2, 68, 1000, True, max_shard_size=300_000)
BF16 = np.dtype(ml_dtypes.bfloat16)
MEAN = resmerge_jax.TaskArithmetic()


class Group(NamedTuple):
  base: pathlib.Path
  experts: tuple[pathlib.Path, ...]


def small(path: pathlib.Path, **settings: Any) -> Group:
  """A synthetic Qwen2-shaped group with index, tokenizer and generation config."""
  base, experts = make_group(path, SMALL, **settings)
  return Group(base, tuple(experts))


def write(
  path: pathlib.Path,
  base: Mapping[str, np.ndarray],
  experts: Sequence[Mapping[str, np.ndarray]],
  **settings: Any,
) -> Group:
  """Folders path/base, path/e0, ... with these weights (settings: of write_folder)."""
  return Group(
    folders.write_folder(path / 'base', base, **settings),
    tuple(
      folders.write_folder(path / f'e{i}', expert, **settings)
      for i, expert in enumerate(experts)
    ),
  )


def config_of(
  group: Group, output: pathlib.Path, **settings: Any
) -> resmerge_jax.MergeConfig:
  return resmerge_jax.MergeConfig(
    base=group.base, experts=group.experts, output=output, **settings
  )


def merge(group: Group, output: pathlib.Path, **settings: Any) -> resmerge_jax.Manifest:
  return resmerge_jax.merge(config_of(group, output, **settings))


def load(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a folder, read by safetensors."""
  found = {}
  for file in sorted(folder.glob('*.safetensors')):
    found |= load_file(file)
  return found


def weight_bytes(folder: pathlib.Path) -> dict[str, bytes]:
  """The weight files and the index."""
  files = [*folder.glob('*.safetensors'), *folder.glob('*.index.json')]
  return {file.name: file.read_bytes() for file in files}


def config(folder: pathlib.Path) -> dict[str, Any]:
  return json.loads((folder / 'config.json').read_text())


def records(folder: pathlib.Path) -> list[dict[str, Any]]:
  lines = (folder / 'records.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def assert_same_bits(
  got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]
) -> None:
  assert set(got) == set(want)
  for name, value in want.items():
    assert got[name].dtype == value.dtype, name
    assert got[name].shape == value.shape, name
    np.testing.assert_array_equal(
      np.atleast_1d(got[name]).view(np.uint8),
      np.atleast_1d(value).view(np.uint8),
      err_msg=name,
    )


def assert_within_a_unit(
  got: np.ndarray, want: np.ndarray, share: float, name: str
) -> None:
  """bfloat16 arrays, equal but for one unit on at most `share` of the entries.

  Where numbers nearly cancel, float32 sums of the tensor's largest differ by more.
  """
  units = np.abs(_bf16_order(got) - _bf16_order(want))
  got, want = got.astype(np.float64), want.astype(np.float64)
  units[np.abs(got - want) <= 2.0**-22 * np.abs(want).max(initial=0)] = 0
  assert units.max(initial=0) <= 1, f'{name}: off by {units.max()} bf16 units'
  n = np.count_nonzero(units)
  assert n <= share * units.size, f'{name}: {n} of {units.size} off by a unit'


def _bf16_order(array: np.ndarray) -> np.ndarray:
  """Position of each value in the ordered list of bfloat16 numbers."""
  assert array.dtype == BF16, array.dtype
  bits = array.view(np.uint16).astype(np.int64)
  return np.where(bits < 0x8000, bits, 0x8000 - bits)
