"""The output folder: prepared aside, complete before it has its name."""

import errno
import os
import pathlib
import shutil
import types
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Self

import numpy as np

from resmerge_jax.plan.layout import INDEX_NAME, OutputLayout, ShardFile
from resmerge_jax.writers.check import check_free, check_output, resolved
from resmerge_jax.writers.partial import (
  claim,
  explained,
  is_occupied,
  old_path,
  partial_path,
  release,
)

__all__ = ['FolderWriter', 'check_output']

Buffer = bytes | bytearray | memoryview | np.ndarray
_PART = '.part'


class FolderWriter:
  """Writes the tensors of `layout`, in any order, into what becomes folder `output`.

  Until `commit`, files lie in the partial folder (writers/partial.py) under names that
  no loader reads, and an existing output stays as it is. Leaving the `with` block
  without a commit deletes them.

  Raises:
    InputError: another run writes this output, it is in the way, or the disk refuses.
  """

  def __init__(
    self, output: str | os.PathLike, layout: OutputLayout, overwrite: bool = False
  ):
    self.output = resolved(output)
    self._layout = layout
    self._overwrite = overwrite
    self._new = partial_path(self.output) / 'new'
    self._shard_fds: dict[str, int] = {}
    self._spans: dict[str, list[tuple[int, int]]] = {name: [] for name in layout.where}
    with self._explained(f'output {output} cannot be prepared'):
      self._lock_fd: int | None = claim(self.output)
      try:
        check_free(self.output, overwrite)
        self._new.mkdir()
        for shard in layout.shards:
          self._create(shard)
      except BaseException:
        self.abort()
        raise

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    self.abort()

  def write(self, name: str, offset_bytes: int, data: Buffer) -> None:
    """Writes `data` at `offset_bytes` of tensor `name`; any thread may call this."""
    ref = self._layout.where[name]
    view = _as_bytes(data)
    begin, end = offset_bytes, offset_bytes + len(view)
    if not 0 <= begin <= end <= ref.nbytes:
      raise RuntimeError(
        f'{name}: bytes {begin} to {end} written, it has {ref.nbytes} bytes'
      )
    fd, position = self._shard_fds[ref.file], ref.start + begin
    with self._explained(f'cannot write {name} to {ref.file} of {self.output}'):
      _write_all(fd, view, position)
    if begin < end:
      self._spans[name].append((begin, end))

  def commit(self, files: Mapping[str, bytes | pathlib.Path]) -> list[str]:
    """Adds side `files` (text, or a file to copy) and gives the folder its name.

    Returns:
      Notes for the user; none unless the replaced output could not be deleted.

    Raises:
      InputError: the disk refuses, or `output` was filled since the start.
      RuntimeError: a byte of a tensor was not written exactly once.
    """
    self._check_complete()
    reserved = {INDEX_NAME, *self._shard_fds}
    if clashes := sorted(reserved & files.keys()):
      raise RuntimeError(f'side files named like weight files: {clashes}')
    with self._explained(f'output {self.output} cannot be completed'):
      for name in sorted(files.keys() - {'config.json'}):
        self._put(name, files[name])
      for name, fd in self._shard_fds.items():
        os.fsync(fd)
        os.rename(self._new / (name + _PART), self._new / name)
      if self._layout.index is not None:
        self._put(INDEX_NAME, self._layout.index)
      if 'config.json' in files:  # last: without it no loader takes the folder
        self._put('config.json', files['config.json'])
      _sync_folder(self._new)
      notes = self._swap()
    self.abort()  # only the lock is left
    return notes

  def abort(self) -> None:
    """Deletes what is not committed. Call it when no thread is writing any more."""
    while self._shard_fds:
      os.close(self._shard_fds.popitem()[1])
    if self._lock_fd is not None:
      release(self.output, self._lock_fd)
      self._lock_fd = None

  def _explained(self, what: str) -> AbstractContextManager[None]:
    return explained(what, self.output, self._layout.nbytes)

  def _create(self, shard: ShardFile) -> None:
    """Reserves the disk space of one shard, so that it cannot run out midway."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    fd = os.open(self._new / (shard.name + _PART), flags, 0o666)  # less the umask
    self._shard_fds[shard.name] = fd
    _reserve(fd, shard.nbytes)
    _write_all(fd, memoryview(shard.header), 0)

  def _check_complete(self) -> None:
    problems = []
    for name, ref in self._layout.where.items():
      end = 0
      for begin, stop in sorted(self._spans[name]):
        if begin != end:
          break
        end = stop
      n_bytes = sum(stop - begin for begin, stop in self._spans[name])
      if end != ref.nbytes or n_bytes != ref.nbytes:
        problems.append(f'{name} ({n_bytes} of {ref.nbytes} bytes)')
    if problems:
      raise RuntimeError(
        f'{len(problems)} tensors not written exactly once: {", ".join(problems[:20])}'
      )

  def _put(self, name: str, content: bytes | pathlib.Path) -> None:
    """One file, complete and on disk before it has its name."""
    part = self._new / (name + _PART)
    if isinstance(content, pathlib.Path):
      shutil.copyfile(content, part)  # bytes, not the mode or times of the base's file
    else:
      part.write_bytes(content)
    with part.open('rb') as file:
      os.fsync(file.fileno())
    os.rename(part, self._new / name)

  def _swap(self) -> list[str]:
    """Puts the new folder in place and deletes the output it replaces."""
    check_free(self.output, self._overwrite)
    replaced, old = is_occupied(self.output), old_path(self.output)
    if replaced:
      os.rename(self.output, old)
    try:
      os.rename(self._new, self.output)
    except OSError:
      if replaced:
        os.rename(old, self.output)
      raise
    _sync_folder(self.output.parent)
    try:
      if replaced:
        shutil.rmtree(old)
    except OSError as error:  # the new output is in place: not a failed merge
      return [f'the replaced output {old} could not be deleted: {error.strerror}']
    return []


def _reserve(fd: int, n_bytes: int) -> None:
  try:
    if hasattr(os, 'posix_fallocate'):  # macOS has none
      os.posix_fallocate(fd, 0, n_bytes)
  except OSError as error:
    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
      raise  # else this file system cannot reserve
  os.ftruncate(fd, n_bytes)


def _write_all(fd: int, view: memoryview, position: int) -> None:
  """One call writes at most 2 GiB on Linux, and may write less than asked."""
  while view:
    n_written = os.pwrite(fd, view, position)
    view, position = view[n_written:], position + n_written


def _sync_folder(path: pathlib.Path) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  except OSError as error:
    if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
      raise
  finally:
    os.close(fd)


def _as_bytes(data: Buffer) -> memoryview:
  array = data if isinstance(data, np.ndarray) else np.asarray(memoryview(data))
  if not array.flags.c_contiguous:
    raise RuntimeError(f'a strided array of shape {array.shape} cannot be written')
  return array.reshape(-1).view(np.uint8).data  # ml_dtypes export no buffer
