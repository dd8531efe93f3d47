"""Files of a model folder, on this machine or in a remote store, by byte ranges."""

import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from resmerge_jax.checkpoint.remote import RemoteFile, RemoteFolder

Folder = pathlib.Path | RemoteFolder
File = pathlib.Path | RemoteFile
AT_ONCE = 8  # requests to a remote store: each mostly waits
CAN_EXPECT = hasattr(os, 'posix_fadvise')  # Linux
EXPECTED_AT_ONCE = 512 * 2**10  # bytes; Linux reads no more for one request
_Item = TypeVar('_Item')
_Result = TypeVar('_Result')


class FileState(NamedTuple):
  """What changes when somebody writes to a file: size in bytes, time in ns."""

  bytes: int
  mtime_ns: int


class ObjectState(NamedTuple):
  """The same of a remote file: its generation (gs), ETag (s3) or commit (hf)."""

  version: str


State = FileState | ObjectState


class OpenFile(Protocol):
  """A file being read. Everything may raise OSError."""

  def read_into(self, out: memoryview, offset: int) -> int:
    """Fills `out` from the byte at `offset` on, or a part of it; 0 at the file's end."""

  def expect(self, offset: int, n: int) -> None:
    """These bytes will be wanted soon: where the system can, it reads them meanwhile."""

  def size(self, likely: int = 0) -> int:
    """Bytes; told with fewest requests if it is `likely`."""

  def state(self) -> State:
    """As it is now, or was in the last read of a remote file."""

  def close(self) -> None: ...


class _LocalFile:
  def __init__(self, path: pathlib.Path):
    self._fd = os.open(path, os.O_RDONLY)

  def read_into(self, out: memoryview, offset: int) -> int:
    return os.preadv(self._fd, [out], offset)

  def expect(self, offset: int, n: int) -> None:
    if not CAN_EXPECT:
      return
    for start in range(offset, offset + n, EXPECTED_AT_ONCE):
      n_here = min(EXPECTED_AT_ONCE, offset + n - start)
      os.posix_fadvise(self._fd, start, n_here, os.POSIX_FADV_WILLNEED)

  def size(self, likely: int = 0) -> int:
    del likely
    return os.fstat(self._fd).st_size

  def state(self) -> State:
    return state_of(self._fd)

  def close(self) -> None:
    os.close(self._fd)


class _RemoteFile:
  """Its state is that of the first read until a read finds another."""

  def __init__(self, file: RemoteFile):
    self._file, self._first = file, file.version()
    self._changed: str | None = None

  def read_into(self, out: memoryview, offset: int) -> int:
    data, version = self._file.read(offset, offset + len(out))
    if version != self._first:
      self._changed = version
    out[: len(data)] = data
    return len(data)

  def expect(self, offset: int, n: int) -> None:
    """Nothing keeps them."""

  def size(self, likely: int = 0) -> int:
    return self._file.size(likely)

  def state(self) -> State:
    return ObjectState(self._changed or self._first)

  def close(self) -> None:
    """Nothing is kept open."""


def open_file(file: File) -> OpenFile:
  """Raises OSError."""
  return _RemoteFile(file) if isinstance(file, RemoteFile) else _LocalFile(file)


def read_at(file: OpenFile, begin: int, end: int) -> bytes:
  """Bytes [begin, end), or as many of them as the file has."""
  content = bytearray(end - begin)
  view = memoryview(content)
  while view and (n_read := file.read_into(view, end - len(view))):
    view = view[n_read:]
  n_missing = len(view)
  view.release()
  return bytes(content[: len(content) - n_missing])


def state_of(file: int | File) -> State:
  """Of a descriptor or file. Raises OSError."""
  if isinstance(file, RemoteFile):
    return ObjectState(file.version())
  stat = os.stat(file)
  return FileState(stat.st_size, stat.st_mtime_ns)


def each(
  folder: Folder, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Sequence[_Result]:
  """Results in the order of `items`; of a remote folder several are asked for at once."""
  if isinstance(folder, pathlib.Path):
    return [function(item) for item in items]
  with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    return list(pool.map(function, items))
