"""The least that any merge must do: read every input byte, write the output's bytes.

Run as a process: `python -m resmerge_jax.bench.floor JSON` with the object
{"inputs": [file, ...], "outputs": {file: bytes, ...}}. It loads nothing but the
standard library. The output is synced to disk as a merge's is; the three phases are
printed as JSON, so that each can be counted or left out.
"""

import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

THREADS = 2  # two cores saturate the copies out of the page cache
CHUNK = 1 << 20  # bytes per call: stays in the cache of a core

Chunk = tuple[int, int, int]  # file descriptor, offset, bytes


def read_all(paths: Iterable[str | os.PathLike]) -> None:
  """Reads every byte of the files into one reused buffer per thread."""
  fds = [os.open(path, os.O_RDONLY) for path in paths]
  try:
    chunks = _chunks((fd, os.fstat(fd).st_size) for fd in fds)
    in_threads(_read, [chunks[i::THREADS] for i in range(THREADS)])
  finally:
    for fd in fds:
      os.close(fd)


def write_all(sizes: Mapping[str, int]) -> dict[str, float]:
  """Makes new files of these sizes and syncs them. Seconds of writing and syncing."""
  for path in sizes:
    os.makedirs(os.path.dirname(path), exist_ok=True)
  start = time.perf_counter()
  fds = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644) for path in sizes]
  try:
    # One thread: writers of one file take turns in the kernel.
    in_threads(_write, [_chunks(zip(fds, sizes.values(), strict=True))])
    written = time.perf_counter()
    for fd in fds:
      os.fsync(fd)
  finally:
    for fd in fds:
      os.close(fd)
  return {'write': written - start, 'sync': time.perf_counter() - written}


def in_threads(work: Callable[[list[Chunk]], None], parts: list[list[Chunk]]) -> None:
  """Calls `work` on each part in a thread of its own; raises what one of them raised."""
  errors: list[OSError] = []

  def guarded(part: list[Chunk]) -> None:
    try:
      work(part)
    except OSError as error:
      errors.append(error)

  threads = [threading.Thread(target=guarded, args=(part,)) for part in parts]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  if errors:
    raise errors[0]


def _chunks(files: Iterable[tuple[int, int]]) -> list[Chunk]:
  return [
    (fd, offset, min(CHUNK, size - offset))
    for fd, size in files
    for offset in range(0, size, CHUNK)
  ]


def _read(chunks: list[Chunk]) -> None:
  buffer = memoryview(mmap.mmap(-1, CHUNK))
  for fd, offset, n_bytes in chunks:
    done = 0
    while done < n_bytes:
      n_read = os.preadv(fd, [buffer[done:n_bytes]], offset + done)
      if n_read == 0:
        raise OSError(f'file ends {n_bytes - done} bytes early')
      done += n_read


def _write(chunks: list[Chunk]) -> None:
  buffer = memoryview(mmap.mmap(-1, CHUNK))
  buffer[:] = os.urandom(CHUNK)  # a disk may compress, or skip zeros
  for fd, offset, n_bytes in chunks:
    done = 0
    while done < n_bytes:
      done += os.pwrite(fd, buffer[done:n_bytes], offset + done)


def main(argv: Sequence[str]) -> None:
  """Does the job of `argv[0]` and prints the seconds of its phases."""
  job = json.loads(argv[0])
  start = time.perf_counter()
  read_all(job['inputs'])
  seconds = {'read': time.perf_counter() - start, **write_all(job['outputs'])}
  print(json.dumps(seconds))


if __name__ == '__main__':
  main(sys.argv[1:])
