"""Several processes of one merge: how they start, agree, and fail together.

All of them see the same files. Between start and end they talk through the devices'
collectives only, so a process that waits in one cannot be told anything: a thread of its
own watches the others, by files in a folder they share.
"""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from resmerge_jax.errors import InputError

HEARTBEAT_S = 10  # after which the coordinator gives up a process that was killed
WATCH_S = 0.2
_TPU_DEVICES = ('/dev/accel*', '/dev/vfio/[0-9]*')


def start(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Joins the other processes, before anything asks for devices.

  On a TPU VM all three may be left out: JAX then finds the others of the pod.

  Raises:
    InputError: some of the three are missing, or the coordinator does not answer.
  """
  given = {
    'coordinator': coordinator,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if len(missing) == 3:
    if any(glob.glob(pattern) for pattern in _TPU_DEVICES):
      jax.distributed.initialize()
    return
  if missing:
    raise InputError(
      'flags of several processes are missing',
      missing,
      fix='give each process --coordinator=HOST:PORT (of process 0), --num_processes '
      'and its own --process_id from 0',
    )
  assert num_processes is not None
  assert process_id is not None
  if not 0 <= process_id < num_processes:
    raise InputError(
      f'process_id: got {process_id}, expected 0 to {num_processes - 1} (num_processes '
      f'is {num_processes})'
    )
  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_S
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      f'process {process_id} cannot join the coordinator {coordinator}: {error}',
      fix='start all processes, with the address of process 0 and one number of processes',
    ) from error


def is_first() -> bool:
  """Whether this process speaks for all."""
  return jax.process_index() == 0


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
  """One of several processes that fails says why and ends.

  The usual way out waits for the other processes, and these may wait for this one.
  """
  try:
    yield
  except BaseException as error:
    if jax.process_count() == 1:
      raise
    if isinstance(error, InputError | KeyboardInterrupt):
      lines = [
        f'error: {error or type(error).__name__}',
        *getattr(error, '__notes__', []),
      ]
      print('\n'.join(lines), file=sys.stderr)
    else:
      traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


def agree(failed: BaseException | None = None) -> None:
  """Waits for all processes; goes on only if none of them failed.

  Raises:
    InputError: another process failed. `failed` itself is left to the caller.
  """
  if jax.process_count() == 1:
    return
  ok = multihost_utils.process_allgather(np.array(failed is None))
  others = [i for i in np.flatnonzero(~ok) if i != jax.process_index()]
  if failed is None and others:
    raise InputError(
      f'process {others[0]} of this merge failed; its own message tells why'
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """A part that all processes do, or do not: one that fails fails the others after it."""
  try:
    yield
  except BaseException as error:
    agree(error)
    raise
  agree()


@contextlib.contextmanager
def watched(
  folder: pathlib.Path, is_lost: Callable[[BaseException], bool]
) -> Iterator[None]:
  """The part in which processes work on their own; all leave it together.

  `is_lost` tells whether, after this error, nothing of the merge is worth keeping.
  """
  if jax.process_count() == 1:
    yield
    return
  watch = _Watch(folder)
  try:
    yield
    agree()
  except BaseException as error:
    watch.failed(error, is_lost(error))
    raise
  watch.stop()
  agree()  # nobody watches any more
  watch.close()


class _Watch:
  """Ends this process when another one fails or dies, from a thread of its own.

  Args:
    folder: the merge's partial folder. A process says in it that it is alive by a lock,
      and why it failed by a file; process 0 may delete the folder, which is a failure too.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder, self._index = folder, jax.process_index()
    self._others = [i for i in range(jax.process_count()) if i != self._index]
    self._stop = threading.Event()
    self._alive = (folder / _alive(self._index)).open('w')
    fcntl.flock(self._alive, fcntl.LOCK_EX)
    agree()  # all have their lock
    self._thread = threading.Thread(target=self._run, name='watch', daemon=True)
    self._thread.start()

  def failed(self, error: BaseException, lost: bool) -> None:
    """Tells the others. `lost`: nothing of this merge is worth keeping."""
    self.stop()
    with contextlib.suppress(OSError):
      text = f'{"lost" if lost else "kept"}\n{error or type(error).__name__}'
      aside = self._folder / f'.failed-{self._index}'
      aside.write_text(text)
      aside.rename(self._folder / _failed(self._index))
    time.sleep(3 * WATCH_S)  # process 0 ends the service that the others hang on

  def stop(self) -> None:
    self._stop.set()
    if self._thread is not threading.current_thread():
      self._thread.join()

  def close(self) -> None:
    """Gives up the lock, once all have agreed on their end."""
    self._alive.close()

  def _run(self) -> None:
    while not self._stop.wait(WATCH_S):
      found = self._look()
      if found is not None and not self._stop.is_set():
        print(f'error: {found}; this process ends too', file=sys.stderr, flush=True)
        os._exit(1)

  def _look(self) -> str | None:
    """What is wrong with the others."""
    if not self._folder.exists():
      return 'another process of this merge failed'
    for i in self._others:
      with contextlib.suppress(OSError):
        kept, _, why = (self._folder / _failed(i)).read_text().partition('\n')
        if kept == 'lost' and self._index == 0:
          shutil.rmtree(self._folder, ignore_errors=True)
        return f'process {i} of this merge failed: {why.splitlines()[0]}'
      if self._is_dead(i):
        return f'process {i} of this merge died'
    return None

  def _is_dead(self, i: int) -> bool:
    try:
      with (self._folder / _alive(i)).open('r') as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked; or gone, which the next look sees
      return False
    return True


def _alive(index: int) -> str:
  return f'alive-{index:05d}'


def _failed(index: int) -> str:
  return f'failed-{index:05d}'
