"""Readers of folders and of memory give the same bytes, or an error that says who."""

import concurrent.futures
import os

import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.checkpoint import files
from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.memory import MemoryReader, memory_checkpoint
from resmerge_jax.checkpoint.reader import CheckpointReader, block_bytes
from resmerge_jax.errors import InputError
from resmerge_jax.types import TensorRef
from tests import folders

ARRAYS = {
  **folders.tensors(),
  'scalar': np.array(3.5, np.float32),
  'conv': np.arange(24, dtype=np.float16).reshape(2, 3, 4),
  'empty': np.zeros((0, 4), np.float32),
  'flags': np.array([True, False, True]),
}


def rows(reader, ref, start, stop):
  begin, end = block_bytes(ref, start, stop)
  out = np.full(end - begin + 3, 99, np.uint8)
  reader.read_into(ref, start, stop, out[1:-2])  # an odd address
  assert (out[0], out[-1]) == (99, 99)
  return out[1:-2].tobytes()


@pytest.fixture(params=['folder', 'shards', 'memory'])
def source(request, tmp_path):
  if request.param == 'memory':
    with MemoryReader(ARRAYS, 'm') as reader:
      yield memory_checkpoint(ARRAYS, 'm'), reader
    return
  n_shards = 1 if request.param == 'folder' else 3
  path = folders.write_folder(tmp_path / 'm', ARRAYS, n_shards=n_shards)
  checkpoint = open_checkpoint(path)
  with CheckpointReader(checkpoint) as reader:
    yield checkpoint, reader


def test_expects_the_bytes_it_will_read(tmp_path, monkeypatch):
  """In requests that the system does not cut short; a file that is not there is no error."""
  path = folders.write_folder(tmp_path / 'm', ARRAYS)
  checkpoint = open_checkpoint(path)
  asked = []
  monkeypatch.setattr(files, 'EXPECTED_AT_ONCE', 20)
  monkeypatch.setattr(
    os, 'posix_fadvise', lambda _, start, n, advice: asked.append((start, n, advice))
  )
  with CheckpointReader(checkpoint) as reader:
    ref = checkpoint.tensors['conv']  # rows of 8 bytes
    reader.expect(ref, 1, 4)
    at = ref.start + 8
    assert asked == [
      (at, 20, os.POSIX_FADV_WILLNEED), (at + 20, 4, os.POSIX_FADV_WILLNEED)
    ]  # fmt: skip
  (path / ref.file).unlink()
  with CheckpointReader(checkpoint) as reader:
    reader.expect(ref, 0, 1)
    with pytest.raises(InputError, match='cannot be read'):
      rows(reader, ref, 0, 1)


def test_reads_every_block_of_rows(source):
  checkpoint, reader = source
  assert checkpoint.tensors.keys() == ARRAYS.keys()
  for name, ref in checkpoint.tensors.items():
    matrix = ARRAYS[name].reshape(ref.rows, ref.cols)
    for start in range(ref.rows + 1):
      for stop in range(start, ref.rows + 1):
        assert rows(reader, ref, start, stop) == matrix[start:stop].tobytes()


def test_from_several_threads(source):
  checkpoint, reader = source
  refs = list(checkpoint.tensors.values()) * 20
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda ref: rows(reader, ref, 0, ref.rows), refs))
  for ref, data in zip(refs, found, strict=True):
    assert data == ARRAYS[ref.name].tobytes()


def test_short_reads_are_continued(tmp_path, monkeypatch):
  checkpoint = open_checkpoint(folders.write_folder(tmp_path / 'm', ARRAYS))
  whole = os.preadv
  monkeypatch.setattr(os, 'preadv', lambda fd, to, at: whole(fd, [to[0][:3]], at))
  with CheckpointReader(checkpoint) as reader:
    ref = checkpoint.tensors['conv']
    assert rows(reader, ref, 0, 6) == ARRAYS['conv'].tobytes()


def test_files_are_opened_lazily_and_closed(tmp_path, monkeypatch):
  opened, closed = [], []
  whole_open, whole_close = os.open, os.close
  checkpoint = open_checkpoint(folders.write_folder(tmp_path / 'm', n_shards=3))

  def note_open(path, flags):
    opened.append(whole_open(path, flags))
    return opened[-1]

  with monkeypatch.context() as patch:
    patch.setattr(os, 'open', note_open)
    patch.setattr(os, 'close', lambda fd: (closed.append(fd), whole_close(fd)))
    with CheckpointReader(checkpoint) as reader:
      assert opened == []
      for _ in range(3):
        rows(reader, next(iter(checkpoint.tensors.values())), 0, 1)
      assert len(opened) == 1
  assert closed == opened


def error_of(checkpoint, ref, before=None):
  with CheckpointReader(checkpoint) as reader:
    if before:
      rows(reader, ref, 0, 1)
      before()
    with pytest.raises(InputError) as caught:
      rows(reader, ref, 0, ref.rows)
  return str(caught.value)


@pytest.fixture
def opened(tmp_path):
  checkpoint = open_checkpoint(folders.write_folder(tmp_path / 'm'))
  file = tmp_path / 'm' / 'model.safetensors'
  return checkpoint, checkpoint.tensors['model.embed_tokens.weight'], file


def test_vanished_file(opened):
  checkpoint, ref, file = opened
  file.unlink()
  assert f'{file} cannot be read: No such file' in error_of(checkpoint, ref)


def test_file_truncated_while_reading(opened):
  checkpoint, ref, file = opened
  message = error_of(checkpoint, ref, lambda: os.truncate(file, ref.start + 9))
  assert f"checkpoint 'm', {file} ends at byte {ref.start + 9}" in message
  assert '(tensor model.embed_tokens.weight)' in message
  assert 'leave the input folders alone' in message


def test_file_changed_while_reading(opened):
  checkpoint, ref, file = opened

  def change():
    os.utime(file, ns=(0, 0))

  assert 'was changed while it was read (tensor' in error_of(checkpoint, ref, change)


def test_file_replaced_before_reading(opened):
  checkpoint, ref, file = opened
  folders.write_folder(file.parent.parent / 'other', folders.tensors(vocab=7))
  (file.parent.parent / 'other' / file.name).rename(file)
  assert 'was replaced after its header had been read' in error_of(checkpoint, ref)


def test_device_that_fails(opened, monkeypatch):
  checkpoint, ref, _ = opened

  def fail(*_):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(os, 'preadv', fail)
  message = error_of(checkpoint, ref)
  assert 'cannot be read: Input/output error (tensor model.embed_tok' in message


def test_memory_of_any_strides():
  wide = np.arange(48, dtype=np.float32).reshape(6, 8).astype(ml_dtypes.bfloat16)
  arrays = {
    'transposed': wide.T,
    'strided': wide[::2, 1::3],
    'folded': wide.reshape(2, 3, 8).transpose(1, 0, 2),
    'vector': wide[:, 0],
  }
  checkpoint = memory_checkpoint(arrays, 'm')
  reader = MemoryReader(arrays, 'm')
  for name, ref in checkpoint.tensors.items():
    assert rows(reader, ref, 0, ref.rows) == arrays[name].tobytes()


def test_memory_checkpoint_lists_what_is_no_array():
  class Tensor:
    shape, dtype = (1,), 'torch.bfloat16'

  arrays = {
    'good': np.zeros(2, np.float32),
    'list': [1.0],
    'complex': np.zeros(2, np.complex64),
    'swapped': np.zeros(2, '>f4'),
    'torch': Tensor(),
  }
  with pytest.raises(InputError) as caught:
    memory_checkpoint(arrays, 'math')
  message = str(caught.value)
  assert "'math': values that are not arrays of a known dtype" in message
  assert '- list: builtins.list\n' in message
  assert '- complex: numpy.ndarray of dtype complex64\n' in message
  assert '- swapped: numpy.ndarray of dtype >f4\n' in message
  assert 'Tensor of dtype torch.bfloat16' in message
  assert 'good' not in message


def test_memory_checkpoint():
  checkpoint = memory_checkpoint(ARRAYS, 'm', {'model_type': 'qwen2'})
  assert (checkpoint.id, checkpoint.path) == ('m', None)
  assert checkpoint.tensors['conv'] == TensorRef('conv', 'F16', (2, 3, 4))
  assert checkpoint.config == {'model_type': 'qwen2'}
