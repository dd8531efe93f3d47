"""Several processes of one merge: how they start, agree, and fail together.

Words between them go through JAX's coordination service, which process 0 runs: unlike the
devices' collectives it has no limit of time, and a thread can listen while the devices
compute. That a process died is seen by its lock on a file in a folder that all share; where
locks are not shared, by the service, which ends all processes after HEARTBEAT_S.
"""

import contextlib
import fcntl
import glob
import itertools
import os
import pathlib
import pickle
import re
import shutil
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the service has no public interface

from resmerge_jax.errors import EchoError, InputError, StoppedError

JOIN_S = 60  # for which a process waits for the others to start
HEARTBEAT_S = 10  # after which the coordinator gives up a process that was killed
WATCH_S = 0.2
ECHO_S = 5  # for which a process that knows less waits for the message of another
_LONG_MS = 7 * 24 * 3600 * 1000  # a process may verify terabytes before it agrees
_TPU_DEVICES = ('/dev/accel*', '/dev/vfio/[0-9]*')
_numbers = itertools.count()


def start(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Joins the other processes, before anything asks for devices.

  On a TPU VM all three may be left out: JAX then finds the others of the pod.

  Raises:
    InputError: some of the three are missing or wrong, or the coordinator cannot start.
  """
  given = {
    'coordinator': coordinator,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  missing = [f'--{name}' for name, value in given.items() if value is None]
  # JAX's handler of SIGTERM would only note it: a merge must end, and say so.
  jax.config.update('jax_enable_preemption_service', False)
  if len(missing) == 3:
    if any(glob.glob(pattern) for pattern in _TPU_DEVICES):
      jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S)
    return
  if missing:
    raise InputError(
      'flags of several processes are missing',
      missing,
      fix='give each process --coordinator=HOST:PORT (of process 0), --num_processes '
      'and its own --process_id from 0',
    )
  assert coordinator is not None
  assert num_processes is not None
  assert process_id is not None
  _check_numbers(coordinator, num_processes, process_id)
  with _giving_up(coordinator, process_id):
    try:
      jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=2 * JOIN_S,
        heartbeat_timeout_seconds=HEARTBEAT_S,
      )
    except (RuntimeError, ValueError) as error:
      raise InputError(
        f'process {process_id} cannot join the coordinator {coordinator}: {error}',
        fix='give all processes the same free port on the host of process 0',
      ) from error


def _check_numbers(coordinator: str, num_processes: int, process_id: int) -> None:
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal():
    raise InputError(f'coordinator: got {coordinator!r}, expected HOST:PORT')
  if num_processes < 1:
    raise InputError(f'num_processes: got {num_processes}, expected 1 or more')
  if not 0 <= process_id < num_processes:
    raise InputError(
      f'process_id: got {process_id}, expected 0 to {num_processes - 1} (num_processes '
      f'is {num_processes})'
    )


@contextlib.contextmanager
def _giving_up(coordinator: str, process_id: int) -> Iterator[None]:
  """Ends the process with a message when joining takes too long: JAX would abort it."""

  def give_up() -> None:
    who = 'the others have' if process_id == 0 else 'process 0 or another has'
    error = InputError(
      f'process {process_id} has waited {JOIN_S} s at {coordinator}: {who} not come',
      fix='start all processes at about the same time, with the address of process 0, the '
      'same --num_processes and each its own --process_id; see that no firewall is between',
    )
    print(f'error: {error}', file=sys.stderr, flush=True)
    os._exit(1)

  timer = threading.Timer(JOIN_S, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def is_first() -> bool:
  """Whether this process speaks for all."""
  return jax.process_index() == 0


def leave_at_once(error: BaseException) -> None:
  """Ends one of several processes that has failed; returns if there is only one.

  The usual way out waits for the other processes, and these may wait for this one.
  `error` other than SystemExit is a defect, which keeps its traceback.
  """
  if _service() is None or jax.process_count() == 1:
    return
  status: Any = 1
  if isinstance(error, SystemExit):
    status = error.code or 0
  else:
    traceback.print_exc()
  if status:
    _end(status)


def _end(status: int) -> NoReturn:
  sys.stdout.flush()
  sys.stderr.flush()
  if is_first():  # the service ends with it, and those that still talk to it
    time.sleep(3 * WATCH_S)
  os._exit(status)


def agree(failed: BaseException | None = None) -> None:
  """Waits for all processes; goes on only if none of them failed.

  Raises:
    InputError: another process failed. `failed` itself is left to the caller.
  """
  if jax.process_count() == 1:
    return
  client, place = _service(), f'resmerge/agree-{next(_numbers)}'
  try:
    if failed is not None:
      client.key_value_set(f'{place}/{jax.process_index():05d}', _first_line(failed))
    client.wait_at_barrier(place, _LONG_MS)
    others = sorted(client.key_value_dir_get(place))
  except RuntimeError as error:
    if failed is not None:
      return
    who = re.search(r'Task:? (\d+)', str(error))
    name = f'process {who[1]}' if who else 'a process'
    raise StoppedError(f'{name} of this merge died') from error
  if failed is None and others:
    path, why = others[0]
    raise StoppedError(_failure(int(path.rpartition('/')[2]), why))


def gathered(value: Any) -> list[Any]:
  """`value` of every process, in their order; all of them must ask."""
  if jax.process_count() == 1:
    return [value]
  client, place = _service(), f'resmerge/gather-{next(_numbers)}'
  text = zlib.compress(pickle.dumps(value), 1)
  client.key_value_set_bytes(f'{place}/{jax.process_index():05d}', text)
  return [
    pickle.loads(
      zlib.decompress(client.blocking_key_value_get_bytes(f'{place}/{i:05d}', _LONG_MS))
    )
    for i in range(jax.process_count())
  ]


def _service() -> Any:
  return distributed.global_state.client


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
  folders: Sequence[pathlib.Path], is_lost: Callable[[BaseException], bool]
) -> Iterator[None]:
  """The part in which processes work on their own; all leave it together.

  `folders`: in which the outputs are prepared. `is_lost` tells whether, after this
  error, nothing of the merge is worth keeping.
  """
  if jax.process_count() == 1:
    yield
    return
  watch = _Watch(folders)
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
    folders: the merge's partial folders. In the first each process has a lock while it
      lives. Process 0 deletes them if nothing in them is worth keeping.
  """

  def __init__(self, folders: Sequence[pathlib.Path]):
    self._folders, self._index = folders, jax.process_index()
    self._folder = folder = folders[0]
    self._client = _service()
    self._place = f'resmerge/failed-{next(_numbers)}'
    self._stop, self._ending = threading.Event(), threading.Event()
    self._alive = (folder / _alive(self._index)).open('w')
    fcntl.flock(self._alive, fcntl.LOCK_EX)
    agree()  # all have their lock
    others = (i for i in range(jax.process_count()) if i != self._index)
    self._locked = [i for i in others if not self._is_dead(i)]
    agree()  # all have looked: where locks are not shared, none seems to be held
    self._thread = threading.Thread(target=self._run, name='watch', daemon=True)
    self._thread.start()
    if 0 in self._locked:
      threading.Thread(target=self._await_first, name='first', daemon=True).start()

  def failed(self, error: BaseException, lost: bool) -> None:
    """Tells the others. `lost`: nothing of this merge is worth keeping."""
    if isinstance(error, EchoError):
      self._ending.wait(ECHO_S)
    elif not isinstance(error, InputError | KeyboardInterrupt):
      self._ending.wait(3 * WATCH_S)  # a collective may have failed for want of another
    self.stop()
    while self._ending.is_set():
      time.sleep(WATCH_S)
    with contextlib.suppress(RuntimeError):
      key = f'{self._place}/{self._index:05d}'
      text = f'{"lost" if lost else "kept"} {_first_line(error)}'
      self._client.key_value_set(key, text)
    if self._index == 0:
      time.sleep(3 * WATCH_S)  # before the folder goes

  def stop(self) -> None:
    self._stop.set()
    self._thread.join(3 * WATCH_S)

  def close(self) -> None:
    """Gives up the lock, once all have agreed on their end."""
    self._alive.close()

  def _run(self) -> None:
    while not self._stop.wait(WATCH_S):
      if (found := self._look()) is not None:
        self._end(*found)

  def _await_first(self) -> None:
    """Sees at once that process 0 dies: JAX is about to abort all others then."""
    with contextlib.suppress(OSError), (self._folder / _alive(0)).open('r') as file:
      fcntl.flock(file, fcntl.LOCK_SH)
      if not self._stop.is_set():
        self._end('process 0 of this merge died', False)

  def _end(self, why: str, lost: bool) -> NoReturn:
    self._ending.set()
    print(f'error: {why}; this process ends too', file=sys.stderr, flush=True)
    if self._index == 0:
      time.sleep(3 * WATCH_S)  # the others look too
      if lost:
        for folder in self._folders:
          shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)

  def _look(self) -> tuple[str, bool] | None:
    """What is wrong with the others, and whether nothing is worth keeping."""
    try:
      failed = sorted(self._client.key_value_dir_get(self._place))
    except RuntimeError:  # without process 0 there is no service
      failed = []
    for path, text in failed:
      kept, _, why = text.partition(' ')
      return _failure(int(path.rpartition('/')[2]), why), kept == 'lost'
    for i in self._locked:
      if self._is_dead(i):
        return f'process {i} of this merge died', False
    return None

  def _is_dead(self, i: int) -> bool:
    try:
      with (self._folder / _alive(i)).open('r') as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked
      return False
    return True


def _alive(index: int) -> str:
  return f'alive-{index:05d}'


def _failure(index: int, why: str) -> str:
  return f'process {index} of this merge failed: {why}'


def _first_line(error: BaseException) -> str:
  if isinstance(error, KeyboardInterrupt):
    return 'it was told to stop'
  return (str(error) or type(error).__name__).splitlines()[0]
