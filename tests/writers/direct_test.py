"""Whole blocks past the page cache, the rest through it."""

import errno
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from resmerge_jax.writers import direct, disk
from resmerge_jax.writers.disk import OpenFiles
from tests import groups, launches, resumes, several
from tests.cli.merge_test import flags_of

BLOCK = direct.BLOCK_BYTES


@pytest.fixture
def path(tmp_path, monkeypatch):
  """A file of 16 blocks, all 255; writes of any size are tried, in pieces."""
  monkeypatch.setattr(disk, 'LEAST_BYTES', 1)
  monkeypatch.setattr(direct, '_CHUNK_BYTES', 3 * BLOCK)
  monkeypatch.setattr(direct, '_own', threading.local())
  path = tmp_path / 'file'
  path.write_bytes(b'\xff' * 16 * BLOCK)
  return path


@pytest.fixture
def direct_fd(path):
  """Where the file system knows no such writes (tmpfs before Linux 6.6, macOS), what
  tests would look at does not happen.
  """
  with path.open('rb+') as file:
    fd = direct.open_direct(file.fileno())
  if fd is None:
    # tmpfs before Linux 6.6, macOS: no write goes past the cache, so none can be looked at
    pytest.skip('this file system writes through the page cache only')
  yield fd
  os.close(fd)


def data(n: int) -> memoryview:
  return memoryview(np.random.default_rng(n).bytes(n))


def assert_written(path, view, position):
  """The bytes of a write to the file are looked for, and those around them."""
  files = OpenFiles(direct=True)
  files.add('f', path, create=False)
  files.write('f', view, position)
  files.close()
  found = path.read_bytes()
  assert found[:position] == b'\xff' * position
  assert found[position : position + len(view)] == view
  assert found[position + len(view) :] == b'\xff' * (16 * BLOCK - position - len(view))


@pytest.mark.parametrize('position', [0, 1, 8, BLOCK - 1, BLOCK, BLOCK + 513])
@pytest.mark.parametrize(
  'n', [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 2, 3 * BLOCK, 7 * BLOCK + 100]
)
def test_bytes_lie_where_they_belong_and_nowhere_else(path, direct_fd, position, n):
  assert_written(path, data(n), position)
  begin, end = direct.write_blocks(direct_fd, data(n), position)
  first, last = -(-position // BLOCK), (position + n) // BLOCK
  assert end - begin == max(last - first, 0) * BLOCK
  if end:
    assert (position + begin) % BLOCK == 0


def test_small_writes_go_through_the_cache(path, monkeypatch):
  monkeypatch.setattr(disk, 'LEAST_BYTES', 5 * BLOCK)
  monkeypatch.setattr(disk, 'write_blocks', None)  # not called
  assert_written(path, data(5 * BLOCK - 1), 3)


@pytest.mark.usefixtures('direct_fd')
@pytest.mark.parametrize('where', ['open', 'pwrite'])
def test_a_file_system_that_refuses_gets_the_bytes_through_the_cache(
  path, monkeypatch, where
):
  real, refused = getattr(os, where), []

  def refuse(first, second, *rest):
    is_direct = second & os.O_DIRECT if where == 'open' else not refused
    if is_direct:
      refused.append(where)
      raise OSError(errno.EINVAL, 'Invalid argument')
    return real(first, second, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(os, where, refuse)
    assert_written(path, data(7 * BLOCK), 100)
  assert refused == [where]


def test_systems_without_direct_writes(path, monkeypatch):
  monkeypatch.setattr(direct, '_DIRECT', 0)
  assert_written(path, data(7 * BLOCK), 100)


def test_short_writes_are_finished(path, direct_fd, monkeypatch):
  pwrite = os.pwrite
  monkeypatch.setattr(os, 'pwrite', lambda fd, view, at: pwrite(fd, view[:BLOCK], at))
  assert_written(path, data(7 * BLOCK), 100)
  monkeypatch.setattr(direct, '_write_chunk', lambda *_: 0)  # less than a block
  assert direct.write_blocks(direct_fd, data(7 * BLOCK), 100) == (0, 0)
  assert_written(path, data(7 * BLOCK), 100)


def test_a_full_disk_is_told(direct_fd, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'pwrite', full)
  with pytest.raises(OSError, match='No space'):
    direct.write_blocks(direct_fd, data(BLOCK), 0)


def test_a_file_that_took_the_name_is_not_written(path, tmp_path):
  """Another run may have begun anew where a process of the old one still lives."""
  files = OpenFiles(direct=True)
  files.add('f', path, create=False)
  path.rename(tmp_path / 'old')
  path.write_bytes(b'\xff' * 16 * BLOCK)
  files.write('f', data(7 * BLOCK), 0)
  files.close()
  assert path.read_bytes() == b'\xff' * 16 * BLOCK
  assert (tmp_path / 'old').read_bytes()[: 7 * BLOCK] == data(7 * BLOCK)


FORKED = """
import os, sys
from resmerge_jax.writers.disk import OpenFiles
def write(name, byte):
  files = OpenFiles(direct=True)
  files.add('f', name, create=True)
  for i in range(8):
    files.write('f', memoryview(byte * 2**23), i * 2**23)
write('first', b'0')
children = []
for name in ('a', 'b'):
  children.append(os.fork())
  if not children[-1]:
    write(name, name.encode())
    os._exit(0)
for child in children:
  assert os.waitpid(child, 0)[1] == 0
for name in ('a', 'b'):
  with open(name, 'rb') as file:
    assert file.read() == name.encode() * 2**26, name
"""


def test_forked_processes_do_not_share_a_buffer(tmp_path):
  env = os.environ | {'PYTHONPATH': str(launches.ROOT)}
  command = [sys.executable, '-c', FORKED]
  subprocess.run(command, cwd=tmp_path, env=env, check=True)


@pytest.fixture
def counted(direct_fd, monkeypatch) -> list[int]:
  """Bytes of each direct write, of which the smallest tensors have some now."""
  del direct_fd
  real, found = disk.write_blocks, []

  def counting(*args):
    begin, end = real(*args)
    found.append(end - begin)
    return begin, end

  monkeypatch.setattr(disk, 'write_blocks', counting)
  return found


@pytest.fixture(scope='module')
def group(tmp_path_factory):
  """Tensors of 6 to 13 blocks and odd bytes, one after the other in a file."""
  rng = np.random.default_rng(0)
  shapes = {'a': (101, 67), 'b': (67, 131), 'c': (53, 251), 'n': (67,)}
  base = {
    f'model.layers.{i}.mlp.{name}.weight': rng.normal(size=shape).astype(np.float32)
    for i in range(3)
    for name, shape in shapes.items()
  }
  experts = [
    {k: v + np.float32(0.01 * rng.normal(size=v.shape)) for k, v in base.items()}
    for _ in range(2)
  ]
  return groups.write(tmp_path_factory.mktemp('group'), base, experts)


@pytest.mark.parametrize('output_format', ['safetensors', 'both'])
def test_a_merge_has_the_same_bytes(group, tmp_path, counted, output_format):
  more = {'output_dtype': 'float32', 'output_format': output_format}
  ours = groups.merge(group, tmp_path / 'ours', **more).output
  assert max(counted) >= 6 * BLOCK
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(direct, '_DIRECT', 0)
    patch.setattr(disk, 'write_blocks', None)  # not called
    theirs = groups.merge(group, tmp_path / 'theirs', **more).output
  found, want = resumes.contents(ours), resumes.contents(theirs)
  differ = {name for name in found if found[name] != want[name]}
  assert differ <= {'manifest.json', 'README.md'}
  assert found.keys() == want.keys()


def test_whole_files_go_through_the_cache(group, tmp_path, monkeypatch):
  """Mounted object stores may send a file whenever a descriptor of it is closed."""
  monkeypatch.setattr(disk, 'LEAST_BYTES', 1)
  monkeypatch.setattr(disk, 'open_direct', None)  # not called
  merged = groups.merge(group, tmp_path / 'out', whole_files=True).output
  assert groups.load(merged).keys() == groups.load(group.base).keys()


PATCHED = """
from resmerge_jax.cli import merge
from resmerge_jax.writers import disk
disk.LEAST_BYTES = 1
merge.run()
"""


def test_two_processes_that_share_files_write_the_same_bytes(group, tmp_path):
  one = groups.merge(group, tmp_path / 'one', mesh=None, output_dtype='float32').output
  flags = [*flags_of(group, pathlib.Path('two')), '--output_dtype=float32']
  words = launches.joining(2, [*flags, '--mesh=row:2'])
  for ended in launches.run(tmp_path / 'w', words, devices=1, script=PATCHED):
    assert ended.status == 0, ended.err
  merged = groups.load(tmp_path / 'w' / 'two')
  several.assert_agree(merged, groups.load(one), groups.load(group.base))
