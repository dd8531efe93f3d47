"""Checksums of ranges, and joined ones."""

import errno
import os
import zlib

import pytest

from resmerge_jax.writers import disk


@pytest.mark.parametrize(('n', 'm'), [(0, 0), (0, 5), (5, 0), (1, 1), (1000, 70_001)])
def test_a_joined_checksum_is_that_of_both_parts(n, m):
  a, b = os.urandom(n), os.urandom(m)
  assert disk.joined_crc(zlib.crc32(a), zlib.crc32(b), m) == zlib.crc32(a + b)


def test_ranges_are_read_in_pieces(tmp_path, monkeypatch):
  monkeypatch.setattr(disk, 'CHUNK_BYTES', 7)
  data = os.urandom(100)
  path = tmp_path / 'file'
  path.write_bytes(data)
  with path.open('rb') as file:
    assert disk.crc_of_range(file.fileno(), 13, 98) == zlib.crc32(data[13:98])
    assert disk.crc_of_range(file.fileno(), 13, 13) == 0
    assert disk.crc_of_range(file.fileno(), 13, 101) is None
  assert disk.crc_of_file(path) == zlib.crc32(data)
  assert disk.crc_text(5) == '00000005'


def test_a_file_cut_while_it_is_read_is_no_checksum(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  path.write_bytes(b'12345')
  monkeypatch.setattr(disk, 'crc_of_range', lambda *_: None)
  with pytest.raises(OSError, match='became shorter') as caught:
    disk.crc_of_file(path)
  assert caught.value.errno == errno.EIO
