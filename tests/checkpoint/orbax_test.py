"""Orbax checkpoints as inputs: what Orbax saved is read bit by bit, or refused."""

import concurrent.futures
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.reader import block_bytes
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.errors import InputError
from resmerge_jax.models.hf_config import config_to_hf
from resmerge_jax.models.save import hf_tensors
from tests import folders, orbax_folders
from tests.models import tiny
from tests.trees import models

ODD = {
  'scalar': np.array(3.5, np.float32),
  'conv': np.arange(24, dtype=np.float16).reshape(2, 3, 4),
  'flags': np.array([True, False, True]),
  'ids': np.arange(5, dtype=np.int64),
  'zeros': np.zeros((3, 4), np.float32),
  'negative zeros': -np.zeros(4, np.float32),
}


def rows(reader, ref, start, stop):
  begin, end = block_bytes(ref, start, stop)
  out = np.full(end - begin + 3, 99, np.uint8)
  reader.read_into(ref, start, stop, out[1:-2])  # an odd address
  assert (out[0], out[-1]) == (99, 99)
  return out[1:-2].tobytes()


def assert_holds(path, arrays):
  checkpoint = open_checkpoint(path)
  assert checkpoint.tensors.keys() == arrays.keys()
  with reader_of(checkpoint) as reader:
    for name, ref in checkpoint.tensors.items():
      array = arrays[name]
      assert (ref.shape, ref.nbytes) == (array.shape, array.nbytes)
      matrix = array.reshape(ref.rows, ref.cols)
      cuts = sorted({0, 1, 2, ref.rows // 2, ref.rows - 1, ref.rows})
      for start in cuts:
        for stop in (c for c in cuts if start <= c <= ref.rows):
          got = rows(reader, ref, start, stop)
          assert got == matrix[start:stop].tobytes(), (name, start, stop)


@pytest.mark.parametrize('how', ['v1', 'plain', 'zarr2', 'classic'])
def test_a_leaf_per_tensor(tmp_path, how):
  arrays = {**folders.tensors(), **ODD}
  path = orbax_folders.save(tmp_path / 'm 50% #1', arrays, folders.CONFIG, how)
  assert_holds(path, arrays)
  found = open_checkpoint(path)
  assert found.warnings == (f'checkpoint {path}: no tokenizer files',)
  assert not {*found.side_files, 'config.json'} & {*found.shard_files}


@pytest.mark.parametrize(
  ('layout', 'kind', 'how'),
  [
    ('nnx', 'qwen2', 'v1'),
    ('nnx', 'llama', 'zarr2'),
    ('tunix', 'qwen3_moe', 'v1'),
    ('maxtext', 'qwen3_moe', 'v1'),
    ('maxtext_scanned', 'qwen2', 'v1'),
    ('maxtext_scanned', 'qwen3_moe', 'plain'),
  ],
)
def test_what_a_training_stack_saved(tmp_path, layout, kind, how):
  arrays, config = models.tensors(kind), models.config(kind)
  leaves = orbax_folders.tree(layout, arrays, config)
  path = orbax_folders.save(tmp_path / 'm', leaves, config, how, layout)
  assert open_checkpoint(path).tree.layout == layout
  assert_holds(path, arrays)


@pytest.mark.parametrize('layout', ['hf', 'nnx', 'tunix', 'maxtext', 'maxtext_scanned'])
def test_a_layout_that_is_not_told_is_recognised(tmp_path, layout):
  arrays, config = models.tensors('qwen2'), models.config('qwen2')
  leaves = orbax_folders.tree(layout, arrays, config)
  path = orbax_folders.save(tmp_path / 'm', leaves, config, 'classic')
  assert open_checkpoint(path).tree.layout == layout
  assert_holds(path, arrays)
  config['model_type'] = 'gemma2'
  (path / 'config.json').write_text(json.dumps(config))
  assert open_checkpoint(path).tree.layout == 'hf'


def test_a_state_of_our_decoder(tmp_path):
  """Orbax saves an nnx.State with a last key `value`."""
  model = tiny.decoder(tiny.CONFIG)
  config = config_to_hf(tiny.CONFIG, 'float32')
  path = orbax_folders.save(tmp_path / 'm', nnx.state(model), config, layout='nnx')
  assert_holds(path, dict(hf_tensors(model)))


def test_sharded_arrays_and_threads(tmp_path):
  """Saved from eight devices: a leaf has several chunks."""
  big = np.arange(64 * 32, dtype=np.float32).reshape(64, 32).astype(ml_dtypes.bfloat16)
  mesh = jax.make_mesh((8,), ('a',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.NamedSharding(mesh, jax.P(None, 'a'))
  path = tmp_path / 'm'
  orbax_folders.save(path, {'big': jax.device_put(big, sharding)}, folders.CONFIG)
  checkpoint = open_checkpoint(path)
  ref = checkpoint.tensors['big']
  with (
    reader_of(checkpoint) as reader,
    concurrent.futures.ThreadPoolExecutor(8) as pool,
  ):
    found = list(pool.map(lambda i: rows(reader, ref, i, i + 3), range(60)))
  assert found == [big[i : i + 3].tobytes() for i in range(60)]


def refused(path, **settings) -> str:
  with pytest.raises(InputError) as caught:
    open_checkpoint(path, **settings)
  return str(caught.value)


def test_trees_that_are_no_model(tmp_path):
  arrays = folders.tensors()
  save = orbax_folders.save
  path = save(tmp_path / 'text', {**arrays, 'name': 'qwen'}, folders.CONFIG)
  assert 'leaves that are no arrays\n  - name: string' in refused(path)
  path = save(tmp_path / 'layout', arrays, folders.CONFIG, layout='mine')
  assert "an Orbax tree in layout 'mine', known are hf, nnx, maxtext" in refused(path)
  path = save(tmp_path / 'other', arrays, models.config('qwen2'), layout='nnx')
  text = refused(path, role='base')
  assert text.startswith(f'base {path}: an Orbax tree that is not in layout nnx: 8 ')
  assert '\n  - model.norm.weight: [4]\n' in text
  (path / 'config.json').write_text(json.dumps({'model_type': 'gemma2'}))
  assert "no table for model_type 'gemma2'" in refused(path)
  (path / 'config.json').unlink()
  assert 'no config.json' in refused(path)


def test_two_trees(tmp_path):
  path = orbax_folders.save(
    tmp_path / 'm', folders.tensors(), folders.CONFIG, how='zarr2'
  )
  shutil.copytree(path / 'items', path / 'ema')
  text = refused(path)
  assert 'an Orbax checkpoint with 2 trees of arrays\n  - ema\n  - items\n' in text


def test_missing_chunks_and_arrays_are_errors(tmp_path):
  arrays = folders.tensors()
  path = orbax_folders.save(tmp_path / 'm', arrays, folders.CONFIG, 'plain')
  leaf = path / 'state' / 'model.norm.weight'
  checkpoint = open_checkpoint(path)
  shutil.rmtree(leaf / 'c')
  with (
    reader_of(checkpoint) as reader,
    pytest.raises(InputError, match=r'model\.norm\.weight cannot be read: .*NOT_FOUND'),
  ):
    rows(reader, checkpoint.tensors['model.norm.weight'], 0, 1)
  shutil.rmtree(leaf)
  text = refused(path)
  assert '1 leaves of the Orbax tree cannot be opened\n  - model.norm.weight: ' in text
