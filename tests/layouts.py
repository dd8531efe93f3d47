"""A small output for tests, two bfloat16 matrices and a float32 vector, and its merge."""

import pathlib

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from resmerge_jax.plan.layout import OutputLayout, lay_out
from resmerge_jax.types import CODES, TensorRef
from resmerge_jax.writers.folder import FolderWriter

CONFIG = {'config.json': b'{}'}


def weights() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
    'b.weight': rng.normal(size=(6, 4)).astype(ml_dtypes.bfloat16),
    'a.weight': rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    'norm': rng.normal(size=(7,)).astype(np.float32),
  }


def refs(file: str = 'model.safetensors') -> list[TensorRef]:
  return [
    TensorRef(name, CODES[value.dtype], value.shape, file)
    for name, value in weights().items()
  ]


def layout(max_shard_size: int | None = None) -> OutputLayout:
  return lay_out(refs(), max_shard_size)


def write_all(writer: FolderWriter) -> None:
  for name, value in weights().items():
    writer.write(name, 0, value)


def merge(output: pathlib.Path, overwrite: bool = False, limit: int | None = None):
  with FolderWriter(output, layout(limit), overwrite) as writer:
    write_all(writer)
    return writer.commit(CONFIG)


def listing(folder: pathlib.Path) -> list[str]:
  return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def assert_weights(folder: pathlib.Path) -> None:
  found = {}
  for file in folder.glob('*.safetensors'):
    found |= load_file(file)
  assert found.keys() == weights().keys()
  for name, value in weights().items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name].view(np.uint8), value.view(np.uint8))
