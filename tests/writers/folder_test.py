"""The folder writer: contents, commit, failure, kill, and two runs at once."""

import errno
import os
import pathlib
import resource
import stat
import threading

import pytest
from safetensors import safe_open

from resmerge_jax.errors import InputError
from resmerge_jax.plan.layout import INDEX_NAME
from resmerge_jax.writers.folder import FolderWriter
from tests import layouts
from tests.layouts import CONFIG, assert_weights, listing, merge, write_all

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize('limit', [None, 1])
def test_safetensors_reads_what_was_written(tmp_path, limit):
  assert merge(tmp_path / 'a' / 'out', limit=limit) == []
  output = tmp_path / 'a' / 'out'
  assert_weights(output)
  for file in output.glob('*.safetensors'):
    with safe_open(file, 'np') as opened:
      assert opened.metadata() == {'format': 'pt'}
  layout = layouts.layout(limit)
  index = [INDEX_NAME] if limit else []
  files = ['config.json', *index, *(shard.name for shard in layout.shards)]
  assert listing(output) == sorted(files)
  if limit:
    assert (output / INDEX_NAME).read_bytes() == layout.index
  assert os.listdir(tmp_path / 'a') == ['out']  # nothing beside it


def test_pieces_of_any_buffer_come_in_any_order_from_threads(tmp_path):
  output = tmp_path / 'out'
  values = layouts.weights()
  with FolderWriter(output, layouts.layout()) as writer:
    rows = values['b.weight']
    jobs = [('b.weight', 8 * i, rows[i]) for i in (3, 0, 5, 1, 4, 2)]
    data = values['a.weight'].tobytes()
    jobs += [('a.weight', 10, bytearray(data[10:])), ('a.weight', 0, data[:10])]
    jobs += [('norm', 0, memoryview(values['norm'])), ('norm', 28, b'')]
    threads = [threading.Thread(target=writer.write, args=job) for job in jobs]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    writer.commit(CONFIG)
  assert_weights(output)


def test_side_files_are_copied_byte_for_byte_with_the_mode_of_the_umask(tmp_path):
  source = tmp_path / 'blob'
  source.write_bytes(b'\x00\xff tokens')
  source.chmod(0o600)
  link = tmp_path / 'tokenizer.json'
  link.symlink_to(source)
  before = os.umask(0o027)
  try:
    with FolderWriter(tmp_path / 'out', layouts.layout()) as writer:
      write_all(writer)
      writer.commit({**CONFIG, 'tokenizer.json': link, 'README.md': b'card'})
  finally:
    os.umask(before)
  copied = tmp_path / 'out' / 'tokenizer.json'
  assert copied.read_bytes() == source.read_bytes()
  assert not copied.is_symlink()
  for file in (tmp_path / 'out').iterdir():
    assert stat.S_IMODE(file.stat().st_mode) == 0o640, file
  assert stat.S_IMODE((tmp_path / 'out').stat().st_mode) == 0o750


def test_an_incomplete_or_doubly_written_tensor_is_not_committed(tmp_path):
  with FolderWriter(tmp_path / 'out', layouts.layout()) as writer:
    values = layouts.weights()
    writer.write('a.weight', 0, values['a.weight'])
    writer.write('b.weight', 0, values['b.weight'][:3])
    writer.write('b.weight', 16, values['b.weight'][:3])  # overlaps, and leaves a hole
    with pytest.raises(RuntimeError) as caught:
      writer.commit(CONFIG)
  assert str(caught.value) == (
    '2 tensors not written exactly once: b.weight (48 of 48 bytes), norm (0 of 28 bytes)'
  )
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('offset', [-2, 2, 100])
def test_data_beyond_its_tensor_is_an_internal_error(tmp_path, offset):
  with FolderWriter(tmp_path / 'out', layouts.layout()) as writer:
    with pytest.raises(RuntimeError, match=r'norm: bytes .* written, it has 28 bytes'):
      writer.write('norm', offset, layouts.weights()['norm'])
    with pytest.raises(RuntimeError, match='strided array of shape'):
      writer.write('a.weight', 0, layouts.weights()['a.weight'].T)


def test_a_side_file_cannot_replace_weights(tmp_path):
  with FolderWriter(tmp_path / 'out', layouts.layout()) as writer:
    write_all(writer)
    with pytest.raises(RuntimeError, match=r"like weight files: \['model.safetensors'"):
      writer.commit({'model.safetensors': b''})
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, None])
def test_leaving_without_commit_leaves_nothing(tmp_path, error):
  (tmp_path / 'out').mkdir()
  try:
    with FolderWriter(tmp_path / 'out', layouts.layout()) as writer:
      write_all(writer)
      if error:
        raise error
  except (ValueError, KeyboardInterrupt):
    pass
  assert os.listdir(tmp_path) == ['out']
  assert os.listdir(tmp_path / 'out') == []
  writer.abort()  # harmless a second time


def test_overwrite_keeps_the_old_output_until_commit(tmp_path):
  output = tmp_path / 'out'
  output.mkdir()
  (output / 'old.txt').write_text('old')
  with pytest.raises(InputError, match='is not empty'):
    FolderWriter(output, layouts.layout())
  with FolderWriter(output, layouts.layout(), overwrite=True) as writer:
    write_all(writer)
    assert listing(output) == ['old.txt']
    writer.commit(CONFIG)
  assert listing(output) == ['config.json', 'model.safetensors']
  assert os.listdir(tmp_path) == ['out']
  with FolderWriter(output, layouts.layout(), overwrite=True) as writer:
    pass  # a failed run changes nothing
  assert_weights(output)


def test_an_output_filled_meanwhile_is_not_replaced(tmp_path):
  output = tmp_path / 'out'
  with FolderWriter(output, layouts.layout()) as writer:
    write_all(writer)
    output.mkdir()
    (output / 'theirs').touch()
    with pytest.raises(InputError, match='is not empty'):
      writer.commit(CONFIG)
  assert listing(output) == ['theirs']


def test_a_failed_swap_puts_the_old_output_back(tmp_path, monkeypatch):
  output, rename = tmp_path / 'out', os.rename
  output.mkdir()
  (output / 'old.txt').touch()

  def failing(source, target):
    if pathlib.Path(source).name == 'new':
      raise OSError(errno.EIO, 'Input/output error')
    rename(source, target)

  with FolderWriter(output, layouts.layout(), overwrite=True) as writer:
    write_all(writer)
    monkeypatch.setattr(os, 'rename', failing)
    with pytest.raises(InputError, match='cannot be completed: Input/output error'):
      writer.commit(CONFIG)
  assert listing(output) == ['old.txt']
  assert os.listdir(tmp_path) == ['out']


def test_a_full_disk_is_one_readable_error(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(InputError) as caught:
      FolderWriter(tmp_path / 'out', layouts.layout())
  message = str(caught.value)
  assert f'No space left on device on the disk of {tmp_path}: the output' in message
  assert ' free\nWhat to do: free some space' in message
  assert os.listdir(tmp_path) == []
  with FolderWriter(tmp_path / 'out', layouts.layout()) as writer:
    monkeypatch.setattr(os, 'pwrite', full)
    with pytest.raises(InputError, match='No space left on device on the disk of'):
      writer.write('norm', 0, layouts.weights()['norm'])
  assert os.listdir(tmp_path) == []


def test_a_failing_disk_names_tensor_and_file(tmp_path, monkeypatch):
  def broken(*_):
    raise OSError(errno.EIO, 'Input/output error')

  with FolderWriter(tmp_path / 'out', layouts.layout()) as writer:
    monkeypatch.setattr(os, 'pwrite', broken)
    with pytest.raises(InputError) as caught:
      writer.write('norm', 0, layouts.weights()['norm'])
  assert str(caught.value) == (
    f'cannot write norm to model.safetensors of {tmp_path}/out: Input/output error '
    f'({tmp_path}/out)'
  )


def test_a_real_file_size_limit_is_an_input_error(tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
  try:
    with pytest.raises(InputError, match='cannot be prepared: File too large'):
      FolderWriter(tmp_path / 'out', layouts.layout())
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert os.listdir(tmp_path) == []


def test_short_writes_and_disks_that_cannot_reserve(tmp_path, monkeypatch):
  def unsupported(*_):
    raise OSError(errno.EOPNOTSUPP, 'Operation not supported')

  pwrite = os.pwrite
  monkeypatch.setattr(os, 'posix_fallocate', unsupported)
  monkeypatch.setattr(os, 'pwrite', lambda fd, view, at: pwrite(fd, view[:7], at))
  merge(tmp_path / 'out')
  assert_weights(tmp_path / 'out')


def test_a_vanished_side_file_fails_the_commit_cleanly(tmp_path):
  with FolderWriter(tmp_path / 'out', layouts.layout()) as writer:
    write_all(writer)
    with pytest.raises(InputError, match=r'No such file or directory \(.*gone\.json\)'):
      writer.commit({**CONFIG, 'gone.json': tmp_path / 'gone.json'})
  assert os.listdir(tmp_path) == []


def test_a_second_run_into_the_same_output_is_refused(tmp_path):
  output = tmp_path / 'out'
  (tmp_path / 'alias').symlink_to(output)
  with FolderWriter(output, layouts.layout()) as writer:
    write_all(writer)
    for name in ('out', 'alias'):
      with pytest.raises(InputError, match='another merge is writing'):
        FolderWriter(tmp_path / name, layouts.layout())
    writer.commit(CONFIG)
  assert_weights(output)
