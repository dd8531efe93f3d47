"""Bytes on disk: reserving, writing, syncing, and checksums of what lies there."""

import contextlib
import errno
import os
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np

from resmerge_jax.writers.direct import LEAST_BYTES, open_direct, write_blocks

Buffer = bytes | bytearray | memoryview | np.ndarray
CHUNK_BYTES = 4 * 2**20  # of one read; small beside any step
KEPT_OPEN = 128  # twice each; a process may often have no more than 1024 files open
_CRC_POLYNOMIAL = 0xEDB88320  # of CRC-32, lowest power in the highest bit
_sync_data = getattr(os, 'fdatasync', os.fsync)  # macOS has no fdatasync


class OpenFiles:
  """Files to write into: some stay open, the others are opened for each use.

  Thousands may be more than a process may have open; to open one takes microseconds.

  Args:
    direct: large writes into files that stay open go past the page cache, if they can.
  """

  def __init__(self, direct: bool) -> None:
    self._direct = direct
    self._paths: dict[str, pathlib.Path] = {}
    self._fds: dict[str, int] = {}
    self._direct_fds: dict[str, int] = {}  # where there is one

  def __iter__(self) -> Iterator[str]:
    return iter(self._paths)

  def add(self, name: str, path: pathlib.Path, create: bool) -> None:
    """Opens a file, creates it if it is to be. Raises OSError."""
    flags = os.O_RDWR | (os.O_CREAT if create else 0)
    fd = os.open(path, flags, 0o666)  # less the umask
    self._paths[name] = path
    if len(self._fds) < KEPT_OPEN:
      self._fds[name] = fd
      if self._direct and (direct_fd := open_direct(fd)) is not None:
        self._direct_fds[name] = direct_fd
    else:
      os.close(fd)

  @contextlib.contextmanager
  def opened(self, name: str) -> Iterator[int]:
    """The descriptor of a file; any thread may ask."""
    if name in self._fds:
      yield self._fds[name]
      return
    fd = os.open(self._paths[name], os.O_RDWR)
    try:
      yield fd
    finally:
      os.close(fd)

  def write(self, name: str, view: memoryview, position: int) -> None:
    """Writes bytes of a file; any thread may. Raises OSError."""
    begin, end = 0, 0
    if name in self._direct_fds and len(view) >= LEAST_BYTES:
      begin, end = write_blocks(self._direct_fds[name], view, position)
    with self.opened(name) as fd:
      write_all(fd, view[:begin], position)
      write_all(fd, view[end:], position + end)

  def close(self) -> None:
    self._paths.clear()
    for fds in (self._fds, self._direct_fds):
      while fds:
        os.close(fds.popitem()[1])


def reserve(fd: int, n_bytes: int) -> None:
  """Gives the file its size and, where the file system can, its disk space."""
  try:
    if hasattr(os, 'posix_fallocate'):  # macOS has none
      os.posix_fallocate(fd, 0, n_bytes)
  except OSError as error:
    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
      raise  # else this file system cannot reserve
  os.ftruncate(fd, n_bytes)


def write_all(fd: int, view: memoryview, position: int) -> None:
  """One call writes at most 2 GiB on Linux, and may write less than asked."""
  while view:
    n_written = os.pwrite(fd, view, position)
    view, position = view[n_written:], position + n_written


def sync_file(fd: int) -> None:
  """Returns when the file's bytes would survive a power cut."""
  _sync_data(fd)


def write_durably(path: pathlib.Path, content: bytes) -> None:
  """Puts the whole file under its name; a kill leaves what was there before."""
  part = path.with_name(path.name + '.part')
  with part.open('wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.rename(part, path)
  sync_folder(path.parent)


def sync_folder(path: pathlib.Path) -> None:
  """Makes the names in a folder durable."""
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  except OSError as error:
    if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
      raise
  finally:
    os.close(fd)


def as_bytes(data: Buffer) -> memoryview:
  array = data if isinstance(data, np.ndarray) else np.asarray(memoryview(data))
  if not array.flags.c_contiguous:
    raise RuntimeError(f'a strided array of shape {array.shape} cannot be written')
  return array.reshape(-1).view(np.uint8).data  # ml_dtypes export no buffer


def crc_of_range(fd: int, begin: int, end: int) -> int | None:
  """CRC-32 of bytes [begin, end) of a file; None if it ends before."""
  crc, buffer = 0, memoryview(bytearray(min(CHUNK_BYTES, max(end - begin, 0))))
  while begin < end:
    n_read = os.preadv(fd, [buffer[: end - begin]], begin)
    if n_read == 0:
      return None
    crc, begin = zlib.crc32(buffer[:n_read], crc), begin + n_read
  return crc


def crc_of_file(path: pathlib.Path) -> int:
  """CRC-32 of a whole file."""
  with path.open('rb') as file:
    crc = crc_of_range(file.fileno(), 0, os.fstat(file.fileno()).st_size)
  if crc is None:
    raise OSError(errno.EIO, 'became shorter while it was read', str(path))
  return crc


def crc_text(crc: int) -> str:
  """A CRC-32 as the manifest has it: eight hexadecimal digits."""
  return f'{crc:08x}'


def joined_crc(first: int, second: int, second_bytes: int) -> int:
  """CRC-32 of A + B from those of A and of B, which is `second_bytes` long.

  Appending n bytes multiplies the first remainder by x^(8 n).
  """
  power, square = 1 << 31, 1 << 23  # x^0, x^8
  while second_bytes:
    if second_bytes & 1:
      power = _product(power, square)
    square, second_bytes = _product(square, square), second_bytes >> 1
  return _product(power, first) ^ second


def _product(a: int, b: int) -> int:
  """Product of two remainders modulo the polynomial of CRC-32."""
  result = 0
  for power in range(31, -1, -1):
    if a >> power & 1:
      result ^= b
    b = b >> 1 ^ (_CRC_POLYNOMIAL if b & 1 else 0)
  return result
