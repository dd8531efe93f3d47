"""Model folders: what is read from a good one, what a bad one is told."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.format import read_header
from resmerge_jax.errors import InputError
from tests import folders


def error_of(path, role='base'):
  with pytest.raises(InputError) as caught:
    open_checkpoint(path, role=role)
  assert str(caught.value).startswith(f'{role} {path}: ')
  return str(caught.value)


def test_single_file_folder(tmp_path):
  files = {
    **folders.TOKENIZER,
    'generation_config.json': '{}',
    'chat_template.jinja': 'x',
    'README.md': 'card',
    'manifest.json': '{}',
    'records.jsonl': '',
    '.gitattributes': '',
  }
  path = folders.write_folder(tmp_path / 'qwen', files=files)
  checkpoint = open_checkpoint(path)
  weights = folders.tensors()
  assert checkpoint.id == 'qwen'
  assert checkpoint.path == path
  assert checkpoint.config['model_type'] == 'qwen2'
  assert checkpoint.tensors.keys() == weights.keys()
  assert checkpoint.nbytes == sum(array.nbytes for array in weights.values())
  assert checkpoint.shard_files == ('model.safetensors',)
  assert checkpoint.side_files == (
    'chat_template.jinja',
    'generation_config.json',
    'tokenizer.json',
    'tokenizer_config.json',
  )
  assert checkpoint.warnings == ()
  assert open_checkpoint(path, id='math').id == 'math'


def test_sharded_folder_in_file_then_offset_order(tmp_path):
  path = folders.write_folder(tmp_path / 'm', n_shards=3)
  checkpoint = open_checkpoint(path)
  assert len(checkpoint.shard_files) == 3
  headers = [read_header(path / file) for file in checkpoint.shard_files]
  refs = [ref for header in headers for ref in header.tensors.values()]
  assert list(checkpoint.tensors.values()) == refs
  raw = b''.join(header.raw for header in headers)
  assert checkpoint.header_sha256 == hashlib.sha256(raw).hexdigest()


def test_links_as_in_the_hub_cache(tmp_path):
  real = folders.write_folder(tmp_path / 'blobs', n_shards=2)
  snapshot = tmp_path / 'snapshot'
  snapshot.mkdir()
  for file in real.iterdir():
    blob = real / f'blob-{hashlib.sha256(file.name.encode()).hexdigest()[:8]}'
    file.rename(blob)
    (snapshot / file.name).symlink_to(blob)
  (tmp_path / 'link').symlink_to(snapshot)
  checkpoint = open_checkpoint(tmp_path / 'link')
  assert checkpoint.id == 'link'
  assert checkpoint.tensors.keys() == folders.tensors().keys()
  assert {r.file for r in checkpoint.tensors.values()} == set(checkpoint.shard_files)
  for blob in real.glob('blob-*'):
    blob.unlink()
  assert 'no config.json' in error_of(snapshot)


def test_relative_path_has_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(folders.write_folder(tmp_path / 'here'))
  assert open_checkpoint('.').id == 'here'


def test_warnings(tmp_path):
  path = folders.write_folder(tmp_path / 'm', files={})
  (path / 'onnx').mkdir()
  (path / '.cache').mkdir()
  (path / 'training_args.bin').write_bytes(b'')
  save_file({'w': np.zeros(2, np.float32)}, path / 'consolidated.safetensors')
  checkpoint = open_checkpoint(path, role="expert 'm'")
  who = f"expert 'm' {path}"
  assert checkpoint.warnings == (
    f'{who}: ignored, a second copy of the weights: consolidated.safetensors',
    f'{who}: no tokenizer files',
    f'{who}: neither read nor copied: training_args.bin',
    f'{who}: sub-folders are not copied: onnx',
  )
  assert checkpoint.side_files == ()


def test_missing_folder_and_file(tmp_path):
  assert 'no such folder' in error_of(tmp_path / 'gone')
  assert 'hf://' not in error_of(tmp_path / 'gone')
  assert 'hf://OWNER/NAME' in error_of(tmp_path / 'Qwen' / 'Qwen3')
  (tmp_path / 'file').write_text('')
  assert 'a file, not a folder' in error_of(tmp_path / 'file')


def test_not_a_checkpoint_folder(tmp_path):
  (tmp_path / 'notes.txt').write_text('')
  message = error_of(tmp_path)
  assert 'not a checkpoint folder: no *.safetensors at its top' in message
  assert 'holds notes.txt' in message


def test_pickles_are_refused(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  message = error_of(tmp_path)
  assert 'weights only as pickles, no *.safetensors\n  - pytorch_model.bin' in message
  assert 'a pickle executes code when it is read' in message
  assert 'safe_serialization=True' in message


def test_config_errors(tmp_path):
  path = folders.write_folder(tmp_path / 'm')
  (path / 'config.json').write_text('{"a": 1,}')
  assert 'config.json is not JSON (' in error_of(path)
  (path / 'config.json').write_text('[]')
  assert 'config.json is a JSON list, not an object' in error_of(path)
  (path / 'config.json').write_bytes(b'\xff{}')
  assert 'config.json is not UTF-8' in error_of(path)
  (path / 'config.json').unlink()
  assert 'no config.json' in error_of(path)


def test_quantised_config_is_refused(tmp_path):
  path = folders.write_folder(
    tmp_path / 'm', quantization_config={'quant_method': 'gptq'}
  )
  message = error_of(path)
  assert 'quantised: config.json has quantization_config (gptq)' in message
  assert 'give the unquantised model' in message


def test_quantised_tensors_are_all_listed(tmp_path):
  weights = {
    **folders.tensors(),
    'a.weight': np.zeros((2, 2), ml_dtypes.float8_e4m3fn),
    'b.qweight': np.zeros((2, 2), np.int32),
    'c.weight_scale_inv': np.zeros(2, np.float32),
  }
  message = error_of(folders.write_folder(tmp_path / 'm', weights))
  assert 'quantised: 3 tensors hold 8-bit floats or parts of quantised' in message
  assert 'a.weight: F8_E4M3 [2, 2] in model.safetensors' in message
  assert 'b.qweight: I32' in message
  assert 'c.weight_scale_inv: F32' in message


def test_several_files_without_index(tmp_path):
  path = folders.write_folder(tmp_path / 'm', n_shards=2)
  (path / 'model.safetensors.index.json').unlink()
  message = error_of(path)
  assert '2 safetensors files but no model.safetensors.index.json' in message
  assert '- model-00001-of-00002.safetensors\n' in message


@pytest.fixture
def sharded(tmp_path):
  path = folders.write_folder(tmp_path / 'm', n_shards=3)
  return path, folders.read_index(path)


def test_index_that_is_no_index(sharded):
  path, weight_map = sharded
  index = path / 'model.safetensors.index.json'
  index.write_text('{')
  assert 'model.safetensors.index.json is not JSON' in error_of(path)
  index.write_text(json.dumps({'weight_map': {'a': 1}}))
  assert 'has no weight_map of tensor names to file names' in error_of(path)
  name, file = next(iter(weight_map.items()))
  index.write_text(f'{{"weight_map": {{"{name}": "{file}", "{name}": "{file}"}}}}')
  assert f'names that occur more than once in {index.name}\n  - {name}' in error_of(
    path
  )


def test_index_names_missing_files(sharded):
  path, weight_map = sharded
  (path / 'model-00001-of-00003.safetensors').unlink()
  (path / 'model-00002-of-00003.safetensors').unlink()
  (path / 'model-00002-of-00003.safetensors').symlink_to(path / 'blob')
  message = error_of(path)
  n = list(weight_map.values()).count('model-00001-of-00003.safetensors')
  assert 'names files that are missing' in message
  assert f'- model-00001-of-00003.safetensors ({n} tensors)\n' in message
  assert 'model-00002-of-00003.safetensors (3 tensors), a broken symbolic' in message


@pytest.mark.parametrize(
  'outside', ['../x.safetensors', '/etc/passwd', 'sub/x.safetensors', '..', '', 'a\\b']
)
def test_index_names_files_outside(sharded, outside):
  path, weight_map = sharded
  folders.write_index(path, {**weight_map, 'model.norm.weight': outside})
  message = error_of(path)
  assert 'names files outside the folder' in message
  assert f'- {outside!r} (1 tensor)' in message


def test_index_and_files_disagree(sharded):
  path, weight_map = sharded
  first, *_, last = sorted(set(weight_map.values()))
  moved = next(name for name, file in weight_map.items() if file == first)
  dropped = next(name for name, file in weight_map.items() if file == last)
  weight_map = {**weight_map, moved: last, 'ghost': first}
  del weight_map[dropped]
  folders.write_index(path, weight_map)
  message = error_of(path)
  assert 'model.safetensors.index.json and the files do not agree' in message
  assert f'- {moved}: the index says {last}, it is in {first}\n' in message
  assert f'- ghost: the index says {first}, it is in no file\n' in message
  assert f'- {dropped}: in {last}, not in the index\n' in message


def test_tensor_in_several_files(sharded):
  path, weight_map = sharded
  first, second, _ = sorted(set(weight_map.values()))
  shared = [name for name, file in weight_map.items() if file == first]
  weights = folders.tensors()
  names = [name for name, file in weight_map.items() if file == second] + shared
  save_file({name: weights[name] for name in names}, path / second)
  message = error_of(path)
  assert 'tensors in more than one file' in message
  for name in shared:
    assert f'- {name} in {first}, {second}\n' in message


def test_stray_files_beside_an_index(sharded):
  path, _ = sharded
  save_file({'w': np.zeros(2, np.float32)}, path / 'model.safetensors')
  message = error_of(path)
  assert 'that model.safetensors.index.json does not name' in message
  assert '- model.safetensors (1 tensor)\n' in message


def test_broken_files_are_all_listed(sharded):
  path, _ = sharded
  first, second = sorted(path.glob('*.safetensors'))[:2]
  first.write_bytes(first.read_bytes()[:-1])
  message = error_of(path)
  assert f'base {path}: {first.name}: truncated: ' in message
  assert 'download or copy the file again' in message
  second.write_bytes(b'')
  message = error_of(path)
  assert '2 of 3 safetensors files are broken' in message
  assert f'- {first.name}: truncated: ' in message
  assert f'- {second.name}: truncated: 0 bytes present' in message


def test_no_tensors(tmp_path):
  path = folders.write_folder(tmp_path / 'm', {})
  assert 'its safetensors files hold no tensors' in error_of(path)
