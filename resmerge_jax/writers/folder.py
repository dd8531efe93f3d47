"""The output folder: prepared aside, complete before it has its name."""

import os
import pathlib
import shutil
import types
import zlib
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Self

from resmerge_jax.errors import InputError, StoppedError
from resmerge_jax.plan.layout import INDEX_NAME, OutputLayout, ShardFile
from resmerge_jax.types import TensorRef
from resmerge_jax.writers.check import check_free, check_output, resolved
from resmerge_jax.writers.disk import (
  Buffer,
  OpenFiles,
  as_bytes,
  crc_of_range,
  joined_crc,
  reserve,
  sync_file,
  sync_folder,
  write_all,
)
from resmerge_jax.writers.partial import (
  await_shared,
  claim,
  explained,
  is_occupied,
  new_path,
  old_path,
  release,
)

__all__ = ['FolderWriter', 'Span', 'check_output']

_PART = '.part'


class Span(NamedTuple):
  """Written bytes [begin, end) of a tensor, and their CRC-32."""

  begin: int
  end: int
  crc: int


class FolderWriter:
  """Writes the tensors of `layout`, in any order, into what becomes folder `output`.

  Until `commit`, files lie in the partial folder (writers/partial.py) under names that
  no loader reads, and an existing output stays as it is. Leaving the `with` block
  without a commit deletes them.

  Args:
    lock_fd: what `claim` returned, if the caller has claimed the output to continue
      weight files of an earlier run; they are kept if the output cannot be prepared.
    joins: another process has prepared the output and will commit it; this one only
      writes its bytes.
    own_files: the groups of weight files that this process alone creates and writes,
      None: all.

  Raises:
    InputError: another run writes this output, it is in the way, or the disk refuses.
  """

  def __init__(
    self,
    output: str | os.PathLike,
    layout: OutputLayout,
    overwrite: bool = False,
    lock_fd: int | None = None,
    joins: bool = False,
    own_files: Collection[str] | None = None,
  ):
    self.output = resolved(output)
    self._layout = layout
    self._overwrite = overwrite
    self._new = new_path(self.output)
    # A mounted object store, for which whole files are, may send a file at each close.
    self._files = OpenFiles(direct=own_files is None)
    self._spans: dict[str, list[Span]] = {name: [] for name in layout.where}
    self._lock_fd = lock_fd
    with self._explained(f'output {output} cannot be prepared'):
      own = [
        shard
        for shard in layout.files
        if own_files is None or (shard.group or shard.name) in own_files
      ]
      if joins:
        await_shared(self._new)
        for shard in own:
          if own_files is not None:
            self._create(shard)
          else:
            path = self._new / (shard.name + _PART)
            self._files.add(shard.name, path, create=False)
        return
      if self._lock_fd is None:
        self._lock_fd = claim(self.output)
      try:
        check_free(self.output, overwrite)
        self._new.mkdir(exist_ok=True)
        self._hide()
        for shard in own:
          self._create(shard)
        self._sync_folders()
        for folder in (self._new.parent, self.output.parent):
          sync_folder(folder)
      except BaseException:
        self.abort(keep=lock_fd is not None)
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
    view = as_bytes(data)
    begin, end = offset_bytes, offset_bytes + len(view)
    for ref in self._layout.places[name]:
      if not 0 <= begin <= end <= ref.nbytes:
        raise RuntimeError(
          f'{name}: bytes {begin} to {end} written, it has {ref.nbytes} bytes'
        )
      with self._explained(f'cannot write {name} to {ref.file} of {self.output}'):
        self._files.write(ref.file, view, ref.start + begin)
    if begin < end:
      self._spans[name].append(Span(begin, end, zlib.crc32(view)))

  def spans(self, name: str, begin: int = 0, end: int | None = None) -> list[Span]:
    """What was written of tensor `name`, of its bytes [begin, end) only, in order."""
    return sorted(
      span
      for span in self._spans[name]
      if begin <= span.begin and (end is None or span.end <= end)
    )

  def holds(self, name: str, span: Span) -> bool:
    """Whether these bytes of an earlier run are on disk, by their checksum."""
    return all(self._lies_at(ref, span) for ref in self._layout.places[name])

  def _lies_at(self, ref: TensorRef, span: Span) -> bool:
    path = self._new / (ref.file + _PART)
    begin, end = (ref.start + n for n in span[:2])
    what = f'cannot read {ref.name} back from {ref.file} of {self.output}'
    with self._explained(what):
      try:
        with path.open('rb') as file:
          return crc_of_range(file.fileno(), begin, end) == span.crc
      except FileNotFoundError:
        return False

  def adopt(self, name: str, span: Span) -> None:
    """Counts bytes that `holds` found as written."""
    self._spans[name].append(span)

  def crc_of(self, name: str) -> int:
    """CRC-32 of a tensor that is completely written."""
    crc = 0
    for span in self.spans(name):
      crc = joined_crc(crc, span.crc, span.end - span.begin)
    return crc

  def sync(self, files: Iterable[str]) -> None:
    """Returns when everything written to these weight files is durable."""
    for name in files:
      with (
        self._explained(f'cannot write {name} of {self.output}'),
        self._files.opened(name) as fd,
      ):
        sync_file(fd)

  def commit(self, files: Mapping[str, bytes | pathlib.Path]) -> list[str]:
    """Adds side `files` (text, or a file to copy) and gives the folder its name.

    Returns:
      Notes for the user; none unless the replaced output could not be deleted.

    Raises:
      InputError: the disk refuses, or `output` was filled since the start.
      RuntimeError: a byte of a tensor was not written exactly once.
    """
    self._check_complete()
    texts = self._layout.written_texts
    reserved = {INDEX_NAME, *texts, *(shard.name for shard in self._layout.files)}
    if clashes := sorted(reserved & files.keys()):
      raise RuntimeError(f'side files named like weight files: {clashes}')
    with self._explained(f'output {self.output} cannot be completed'):
      for name in sorted(files.keys() - {'config.json'}):
        self._put(name, files[name])
      for name in self._files:
        with self._files.opened(name) as fd:
          os.fsync(fd)
      for shard in self._layout.files:
        os.rename(self._new / (shard.name + _PART), self._new / shard.name)
      for name, text in texts.items():
        self._put(name, text)
      if 'config.json' in files:  # last: without it no loader takes the folder
        self._put('config.json', files['config.json'])
      self._sync_folders()
      notes = self._swap()
    self.abort()  # only the lock is left
    return notes

  def abort(self, keep: bool = False) -> None:
    """Deletes what is not committed, or keeps it under names that no loader reads.

    Call it when no thread is writing any more.
    """
    self._files.close()
    if self._lock_fd is not None:
      fd, self._lock_fd = self._lock_fd, None
      try:
        if keep and self._new.exists():
          self._hide()
      finally:
        release(self.output, fd, keep)

  def _explained(self, what: str) -> AbstractContextManager[None]:
    return explained(what, self.output, self._layout.nbytes)

  def _hide(self) -> None:
    """Undoes what a commit had done before it was stopped."""
    shards = {shard.name for shard in self._layout.files}
    # config.json before the weights
    for path in sorted(path for path in self._new.rglob('*') if path.is_file()):
      name = path.relative_to(self._new).as_posix()
      if name in shards:
        os.rename(path, path.with_name(path.name + _PART))
      elif name.removesuffix(_PART) not in shards:
        path.unlink()

  def _sync_folders(self) -> None:
    """The folder to be, after those within it."""
    within = [path for path in self._new.rglob('*') if path.is_dir()]
    for folder in (*sorted(within, reverse=True), self._new):
      sync_folder(folder)

  def _create(self, shard: ShardFile) -> None:
    """Reserves the disk space of one shard, so that it cannot run out midway."""
    path = self._new / (shard.name + _PART)
    path.parent.mkdir(parents=True, exist_ok=True)
    self._files.add(shard.name, path, create=True)
    with self._files.opened(shard.name) as fd:
      reserve(fd, shard.nbytes)
      write_all(fd, memoryview(shard.header), 0)

  def _check_complete(self) -> None:
    problems = []
    for name, ref in self._layout.where.items():
      end = 0
      for begin, stop, _ in self.spans(name):
        if begin != end:
          break
        end = stop
      n_bytes = sum(stop - begin for begin, stop, _ in self._spans[name])
      if end != ref.nbytes or n_bytes != ref.nbytes:
        problems.append(f'{name} ({n_bytes} of {ref.nbytes} bytes)')
    if problems:
      raise RuntimeError(
        f'{len(problems)} tensors not written exactly once: {", ".join(problems[:20])}'
      )

  def _put(self, name: str, content: bytes | pathlib.Path) -> None:
    """One file, complete and on disk before it has its name."""
    part = self._new / (name + _PART)
    part.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pathlib.Path):
      shutil.copyfile(content, part)  # bytes, not the mode or times of the base's file
    else:
      part.write_bytes(content)
    with part.open('rb') as file:
      os.fsync(file.fileno())
    os.rename(part, self._new / name)

  def _swap(self) -> list[str]:
    """Puts the new folder in place and deletes the output it replaces."""
    try:
      check_free(self.output, self._overwrite)
    except InputError as error:  # filled since the start: no fault of what was merged
      raise StoppedError(str(error)) from error
    replaced, old = is_occupied(self.output), old_path(self.output)
    if replaced:
      os.rename(self.output, old)
    try:
      os.rename(self._new, self.output)
    except BaseException:  # a signal too
      if replaced and not self.output.exists():
        os.rename(old, self.output)
      raise
    sync_folder(self.output.parent)
    try:
      if replaced:
        shutil.rmtree(old)
    except OSError as error:  # the new output is in place: not a failed merge
      return [f'the replaced output {old} could not be deleted: {error.strerror}']
    return []
