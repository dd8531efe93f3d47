"""Whole blocks past the page cache, the rest through it."""

import errno
import os
import threading

import numpy as np
import pytest

from resmerge_jax.writers import direct
from resmerge_jax.writers.disk import OpenFiles

BLOCK = direct.BLOCK_BYTES


@pytest.fixture
def path(tmp_path, monkeypatch):
  """A file of 16 blocks, all 255; writes of any size are tried, in pieces."""
  monkeypatch.setattr(direct, 'LEAST_BYTES', 1)
  monkeypatch.setattr(direct, '_CHUNK_BYTES', 3 * BLOCK)
  monkeypatch.setattr(direct, '_own', threading.local())
  path = tmp_path / 'file'
  path.write_bytes(b'\xff' * 16 * BLOCK)
  return path


def data(n: int) -> memoryview:
  return memoryview(np.random.default_rng(n).bytes(n))


def written(path, view, position) -> bytes:
  """The file after a write to it, whose bytes are looked for."""
  files = OpenFiles()
  files.add('f', path, create=False)
  files.write('f', view, position)
  files.close()
  found = path.read_bytes()
  assert found[:position] == b'\xff' * position
  assert found[position : position + len(view)] == view
  assert found[position + len(view) :] == b'\xff' * (16 * BLOCK - position - len(view))
  return found


def refuses(path) -> bool:
  return direct.write_blocks(path, data(BLOCK), 0) == (0, 0)


@pytest.mark.parametrize('position', [0, 1, 8, BLOCK - 1, BLOCK, BLOCK + 513])
@pytest.mark.parametrize(
  'n', [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 2, 3 * BLOCK, 7 * BLOCK + 100]
)
def test_bytes_lie_where_they_belong_and_nowhere_else(path, position, n):
  written(path, data(n), position)
  begin, end = direct.write_blocks(path, data(n), position)
  if not refuses(path) and end > begin:
    assert (position + begin) % BLOCK == (position + end) % BLOCK == 0
    assert begin < BLOCK
    assert n - end < BLOCK


def test_small_writes_go_through_the_cache(path, monkeypatch):
  monkeypatch.setattr(direct, 'LEAST_BYTES', 5 * BLOCK)
  assert direct.write_blocks(path, data(5 * BLOCK - 1), 0) == (0, 0)
  written(path, data(5 * BLOCK - 1), 3)


@pytest.mark.parametrize('where', ['open', 'pwrite'])
def test_a_file_system_that_refuses_gets_the_bytes_through_the_cache(
  path, monkeypatch, where
):
  real, refused = getattr(os, where), []

  def refuse(first, second, *rest):
    is_direct = (
      second & os.O_DIRECT if where == 'open' else len(second) % BLOCK == 0
    ) and not refused
    if is_direct:
      refused.append(where)
      raise OSError(errno.EINVAL, 'Invalid argument')
    return real(first, second, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(os, where, refuse)
    written(path, data(7 * BLOCK), 100)
  assert refused == [where]


def test_short_writes_are_finished(path, monkeypatch):
  pwrite = os.pwrite
  monkeypatch.setattr(os, 'pwrite', lambda fd, view, at: pwrite(fd, view[:BLOCK], at))
  written(path, data(7 * BLOCK), 100)
  monkeypatch.setattr(os, 'pwrite', lambda fd, view, at: pwrite(fd, view[:100], at))
  monkeypatch.setattr(direct, '_write_chunk', lambda *_: 0)  # less than a block
  written(path, data(7 * BLOCK), 100)


def test_a_full_disk_is_told(path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'pwrite', full)
  with pytest.raises(OSError, match='No space'):
    direct.write_blocks(path, data(BLOCK), 0)
