"""Writing past the page cache, where the system can.

A step's bytes must be durable before its line in the journal, so the cache saves no
waiting; filling it costs a copy and a fresh page per 4 KiB, seconds of processor time
per GiB on a virtual machine (docs/performance.md).
"""

import errno
import mmap
import os
import threading

BLOCK_BYTES = max(4096, mmap.PAGESIZE)  # by which disks want offsets and addresses
LEAST_BYTES = 2**20  # of one write, below which the cache is as good
_CHUNK_BYTES = 4 * 2**20  # of one call; its copy stays in the processor's cache
_DIRECT = getattr(os, 'O_DIRECT', 0)  # macOS has none
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_own = threading.local()


def open_direct(fd: int) -> int | None:
  """Another descriptor of an open file, past the cache; None where that cannot be."""
  try:
    # The same file, even if its name is another's by now.
    return os.open(f'/proc/self/fd/{fd}', os.O_WRONLY | _DIRECT) if _DIRECT else None
  except OSError:  # whatever is wrong, the cache may do
    return None


def write_blocks(fd: int, view: memoryview, position: int) -> tuple[int, int]:
  """Writes the whole blocks of a file that `view`, to lie at `position`, covers.

  Args:
    fd: of `open_direct`.

  Returns:
    Begin and end, in `view`, of what is written. The rest, less than a block at each
    side or all of it where the file system refuses, is left to go through the cache.

  Raises:
    OSError: the disk refuses.
  """
  at = begin = -position % BLOCK_BYTES
  end = len(view) - (position + len(view)) % BLOCK_BYTES
  try:
    while at < end:
      done = _write_chunk(fd, view[at : min(at + _CHUNK_BYTES, end)], position + at)
      if not done:
        break
      at += done
  except OSError as error:
    if error.errno not in _REFUSED:
      raise
  return (begin, at) if at > begin else (0, 0)


def _write_chunk(fd: int, view: memoryview, position: int) -> int:
  """Bytes written, whole blocks, from a copy that lies at a page's begin."""
  copy = _aligned_copy()
  copy[: len(view)] = view
  done = os.pwrite(fd, copy[: len(view)], position)
  return done - done % BLOCK_BYTES


def _aligned_copy() -> memoryview:
  """This thread's buffer of _CHUNK_BYTES; private, so that a fork has its own."""
  if not hasattr(_own, 'buffer'):
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    _own.buffer = memoryview(mmap.mmap(-1, _CHUNK_BYTES, flags=kind))
  return _own.buffer
