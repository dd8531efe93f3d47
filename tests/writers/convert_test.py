"""Folders converted to Orbax and back: every tree, the same bits."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as checkpoint

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.errors import InputError
from resmerge_jax.trees.table import LAYOUTS
from resmerge_jax.writers.convert import convert, prepare_conversion
from resmerge_jax.writers.folder import FolderWriter
from tests import folders, groups, orbax_folders
from tests.trees import models
from tests.trees.places_test import CASES


def made(source: pathlib.Path, output: pathlib.Path, **settings) -> pathlib.Path:
  settings = {'output_format': 'orbax', **settings}
  convert(prepare_conversion(open_checkpoint(source), output, **settings), print)
  return output


def hf_folder(path: pathlib.Path, kind: str, dtype=ml_dtypes.bfloat16) -> pathlib.Path:
  return folders.write_folder(
    path, models.tensors(kind, dtype), config=models.config(kind), n_shards=2
  )


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize(('layout', 'kind'), CASES)
def test_there_and_back(tmp_path, layout, kind, dtype):
  source = hf_folder(tmp_path / 'hf', kind, dtype)
  orbax = made(source, tmp_path / 'orbax', orbax_layout=layout)
  want = models.tensors(kind, dtype)
  orbax_folders.assert_tree(orbax, layout, kind, want)
  back = made(orbax, tmp_path / 'back', output_format='safetensors')
  groups.assert_same_bits(groups.load(back), want)
  assert (back / 'tokenizer.json').read_text() == folders.TOKENIZER['tokenizer.json']


@pytest.mark.parametrize('layout', LAYOUTS)
def test_large_tensors_can_be_read_in_parts(tmp_path, monkeypatch, layout):
  monkeypatch.setattr('resmerge_jax.plan.orbax_files.CHUNK_BYTES', 64)
  monkeypatch.setattr('resmerge_jax.plan.orbax_files._LEAST_CHUNK', 8)
  source = hf_folder(tmp_path / 'hf', 'qwen2')
  orbax = made(source, tmp_path / 'orbax', orbax_layout=layout)
  want = models.tensors('qwen2')
  orbax_folders.assert_tree(orbax, layout, 'qwen2', want)
  parts = {}
  for path in orbax.glob('state/*/zarr.json'):
    (codec,) = json.loads(path.read_text())['codecs']
    parts[path.parent.name] = codec['configuration']['chunk_shape']
  if layout == 'hf':
    assert parts['model.embed_tokens.weight'] == [2, models.D]
  if layout == 'nnx':
    assert parts['layers.0.attn.q.kernel'] == [models.D, 1, models.H]
  other = made(orbax, tmp_path / 'other', orbax_layout='nnx')
  back = made(other, tmp_path / 'back', output_format='safetensors')
  groups.assert_same_bits(groups.load(back), want)


def test_numbers_of_every_kind(tmp_path):
  weights = {
    'scalar': np.array(3.5, np.float32),
    'conv': np.arange(24, dtype=np.float16).reshape(2, 3, 4),
    'empty': np.zeros((0, 4), np.float32),
    'flags': np.array([True, False, True]),
    'ids': np.arange(5, dtype=np.int64),
    'special': np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
  }
  source = folders.write_folder(tmp_path / 'hf', weights)
  orbax = made(source, tmp_path / 'orbax')
  groups.assert_same_bits(checkpoint.load(orbax), weights)
  back = made(orbax, tmp_path / 'back', output_format='safetensors')
  groups.assert_same_bits(groups.load(back), weights)


def test_rounding_and_widening(tmp_path):
  source = hf_folder(tmp_path / 'hf', 'llama', np.float32)
  orbax = made(source, tmp_path / 'orbax', output_dtype='bfloat16')
  want = models.tensors('llama', ml_dtypes.bfloat16)
  orbax_folders.assert_tree(orbax, 'hf', 'llama', want)
  assert groups.config(orbax)['torch_dtype'] == 'bfloat16'
  wide = made(
    orbax, tmp_path / 'wide', output_format='safetensors', output_dtype='float32'
  )
  groups.assert_same_bits(
    groups.load(wide), {n: a.astype(np.float32) for n, a in want.items()}
  )


def test_what_speaks_of_the_weights_is_kept(tmp_path):
  files = {**folders.TOKENIZER, 'records.jsonl': '{}\n', 'README.md': 'card'}
  source = folders.write_folder(tmp_path / 'hf', files=files)
  orbax = made(source, tmp_path / 'orbax')
  assert (orbax / 'records.jsonl').read_text() == '{}\n'
  assert (orbax / 'README.md').read_text() == 'card'
  manifest = json.loads((orbax / 'manifest.json').read_text())
  assert manifest['converted']['path'] == str(source)
  assert manifest['orbax_layout'] == 'hf'
  back = made(orbax, tmp_path / 'back', output_format='safetensors')
  assert {p.name for p in back.iterdir()} == {
    *files, 'config.json', 'manifest.json', 'model.safetensors'
  }  # fmt: skip


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
  source = hf_folder(tmp_path / 'in' / 'hf', 'qwen2')
  output = tmp_path / 'work' / 'out'
  with pytest.raises(InputError, match='the output lies inside'):
    made(source, source / 'out')
  write, calls = FolderWriter.write, []

  def failing(self, *args):
    calls.append(args)
    if len(calls) > 5:
      raise KeyboardInterrupt
    write(self, *args)

  monkeypatch.setattr(FolderWriter, 'write', failing)
  with pytest.raises(KeyboardInterrupt):
    made(source, output)
  assert list(output.parent.iterdir()) == []
