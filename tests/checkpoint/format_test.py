"""Headers: read what the library writes, write what it reads, refuse the rest."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from resmerge_jax.checkpoint.format import encode_header, read_header
from resmerge_jax.errors import InputError
from resmerge_jax.types import DTYPES, TensorRef
from tests.folders import write_raw


def entry(dtype, shape, begin, end):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}


def error_of(path):
  with pytest.raises(InputError) as caught:
    read_header(path)
  assert str(path) in str(caught.value)
  return str(caught.value)


def test_reads_what_the_library_writes(tmp_path):
  arrays = {
    'a': np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16),
    'b': np.float32([1.5]),
    'c': np.zeros((0, 4), np.float16),
    'scalar': np.array(7, np.int64),
    'flag': np.array([True, False]),
  }
  save_file(arrays, tmp_path / 'm.safetensors', {'format': 'pt'})
  header = read_header(tmp_path / 'm.safetensors')
  assert header.metadata == {'format': 'pt'}
  data = (tmp_path / 'm.safetensors').read_bytes()
  assert data.startswith(header.raw)
  assert header.tensors.keys() == arrays.keys()
  for name, array in arrays.items():
    ref = header.tensors[name]
    assert (ref.shape, DTYPES[ref.dtype]) == (array.shape, array.dtype)
    assert ref.file == 'm.safetensors'
    assert data[ref.start : ref.start + ref.nbytes] == array.tobytes()
  starts = [ref.start for ref in header.tensors.values()]
  assert starts == sorted(starts)


@pytest.mark.parametrize('align', [1, 8, 64, 4096])
def test_the_library_reads_what_we_write(tmp_path, align):
  arrays = {
    'odd': np.uint8([1, 2, 3]),
    'näme "quoted"': np.float32([[1, 2], [3, 4]]).astype(ml_dtypes.bfloat16),
    'empty': np.zeros((3, 0), np.float32),
    'last': np.array(2.5, np.float64),
  }
  codes = {dtype: code for code, dtype in DTYPES.items()}
  refs = [TensorRef(n, codes[a.dtype], a.shape) for n, a in arrays.items()]
  raw, placed = encode_header(refs, {'format': 'pt'}, align)
  assert len(raw) % align == 0
  assert placed[0].start == len(raw)
  path = tmp_path / 'ours.safetensors'
  path.write_bytes(raw + b''.join(a.tobytes() for a in arrays.values()))
  with safetensors.safe_open(path, 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}
    for name, array in arrays.items():
      np.testing.assert_array_equal(file.get_tensor(name), array)
  header = read_header(path)
  assert header.raw == raw
  assert [ref.start for ref in header.tensors.values()] == [r.start for r in placed]


def test_file_without_tensors_or_metadata(tmp_path):
  raw, placed = encode_header([], None)
  (tmp_path / 'none.safetensors').write_bytes(raw)
  header = read_header(tmp_path / 'none.safetensors')
  assert (header.tensors, header.metadata, placed) == ({}, {}, ())


def test_refuses_to_encode_what_no_file_can_hold():
  for names in (['a', 'a'], ['__metadata__']):
    with pytest.raises(InputError, match=f'cannot hold a second {names[0]!r}'):
      encode_header([TensorRef(name, 'F32', (1,)) for name in names])


def test_unaligned_data_is_legal(tmp_path):
  header = {'a': entry('U8', [1], 0, 1), 'b': entry('F32', [1], 1, 5)}
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 2 + 1)  # an odd length
  path = write_raw(tmp_path / 'm.safetensors', text, b'\1' + np.float32(3).tobytes())
  ref = read_header(path).tensors['b']
  assert np.frombuffer(path.read_bytes()[ref.start :], np.float32) == 3


def test_truncated(tmp_path):
  path = tmp_path / 'm.safetensors'
  save_file({'a': np.zeros(100, np.float32)}, path)
  whole = path.read_bytes()
  path.write_bytes(whole[:-150])
  size = len(whole)
  assert f'truncated: {size} bytes declared, {size - 150} bytes present' in error_of(
    path
  )
  path.write_bytes(whole[:20])
  assert 'truncated inside the header: ' in error_of(path)
  assert '20 bytes present' in error_of(path)
  path.write_bytes(b'abc')
  assert 'truncated: 3 bytes present, a safetensors file has at least 8' in error_of(
    path
  )


def test_header_too_large(tmp_path):
  path = tmp_path / 'm.safetensors'
  path.write_bytes(struct.pack('<Q', 2**40) + b'{}')
  text = error_of(path)
  assert 'header too large: 1099511627776 bytes declared' in text
  assert 'the safetensors limit is 100000000' in text


@pytest.mark.parametrize(
  ('header', 'expected'),
  [
    (b'\xff\xfe{}', 'the header is not UTF-8'),
    (b'{"a": ', 'the header is not JSON'),
    (b'[1]', 'the header is a JSON list, not an object'),
    (b'[' * 200_000, 'the header is not JSON of a sensible depth'),
    ({'__metadata__': {'n': 1}}, '__metadata__ of the header is not an object of'),
  ],
)
def test_not_a_header(tmp_path, header, expected):
  assert expected in error_of(write_raw(tmp_path / 'm.safetensors', header))


def test_duplicate_names_are_all_listed(tmp_path):
  one = json.dumps(entry('U8', [1], 0, 1))
  text = '{"a": %s, "b": %s, "a": %s, "b": %s, "c": %s}' % ((one,) * 5)
  message = error_of(write_raw(tmp_path / 'm.safetensors', text.encode(), b'1'))
  assert 'names that occur more than once in the header\n  - a\n  - b\n' in message


def test_malformed_entries_are_all_listed(tmp_path):
  header = {
    'ok': entry('U8', [0], 0, 0),
    'dtype': entry('F4', [1], 0, 1),
    'list dtype': entry(['F32'], [1], 0, 1),
    'shape': entry('U8', [-1], 0, 1),
    'bool': entry('U8', [True], 0, 1),
    'offsets': entry('U8', [1], 1, 0),
    'huge': entry('U8', [2**40, 2**40], 0, 1),
    'text': 'x',
    'gone': {'dtype': 'U8'},
    'bad\ud800': entry('U8', [0], 0, 0),
  }
  message = error_of(write_raw(tmp_path / 'm.safetensors', header))
  assert 'header entries that cannot be understood' in message
  for expected in (
    "'dtype': unknown dtype 'F4' (known: BF16, ",
    "'list dtype': unknown dtype ['F32']",
    "'shape': shape [-1] is not a list of sizes",
    "'bool': shape [True] is not",
    "'offsets': data_offsets [1, 0] is not [begin, end]",
    "'huge': larger than any file",
    "'text': str instead of an object",
    "'gone': no data_offsets, shape",
    "'bad\\ud800': a name with control characters",
  ):
    assert expected in message
  assert "'ok'" not in message


def test_offsets_that_do_not_fit_the_shape(tmp_path):
  header = {'a': entry('F32', [2], 0, 4), 'b': entry('BF16', [3], 4, 8)}
  message = error_of(write_raw(tmp_path / 'm.safetensors', header, bytes(8)))
  assert 'a: F32 [2] takes 8 bytes, its offsets [0, 4] span 4' in message
  assert 'b: BF16 [3] takes 6 bytes, its offsets [4, 8] span 4' in message


@pytest.mark.parametrize(
  ('offsets', 'n_data', 'expected'),
  [
    ([(0, 4), (2, 6)], 6, 'overlaps t0'),
    ([(0, 4), (6, 10)], 10, '2 bytes before t1 belong to no tensor'),
    ([(1, 5)], 5, '1 bytes before t0 belong to no tensor'),
    ([(0, 4), (90, 94)], 8, 't1 ends at byte'),
    ([(0, 4)], 7, '3 bytes after the last tensor belong to no tensor'),
  ],
)
def test_bad_layout(tmp_path, offsets, n_data, expected):
  header = {f't{i}': entry('F32', [1], *span) for i, span in enumerate(offsets)}
  message = error_of(write_raw(tmp_path / 'm.safetensors', header, bytes(n_data)))
  assert 'tensor offsets overlap, leave holes or lie outside the file' in message
  assert expected in message


def test_git_lfs_pointer(tmp_path):
  path = tmp_path / 'm.safetensors'
  path.write_text('version https://git-lfs.github.com/spec/v1\n')
  assert 'a Git LFS pointer instead of the weights' in error_of(path)
  assert 'git lfs pull' in error_of(path)


def test_missing_file(tmp_path):
  assert 'cannot be read: No such file' in error_of(tmp_path / 'gone.safetensors')
