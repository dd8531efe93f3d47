"""Runs one process and measures it from outside: time, and memory as it goes."""

import dataclasses
import os
import pathlib
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence

from resmerge_jax.errors import InputError

INTERVAL = 0.02  # s between two looks at a process's memory
_LOOKS_PER_SEARCH = 10  # looks between two searches for child processes
_SHOWN_LINES = 15  # of what a failed process said
_PROC = pathlib.Path('/proc')


@dataclasses.dataclass(frozen=True)
class Measured:
  """One finished process: `seconds` from its start to its end, `cpu` of its cores.

  The peaks, in bytes, are of the process and its children together, `anonymous` without
  mapped files. `others` is how many cores everything else kept busy meanwhile. These
  are None where the system does not tell. `started` is in s since the epoch.
  """

  seconds: float
  cpu: float
  started: float
  resident: int | None
  anonymous: int | None
  others: float | None
  stdout: str


def run(
  name: str, command: Sequence[str], env: Mapping[str, str], cwd: pathlib.Path
) -> Measured:
  """Runs `command` to its end.

  Raises:
    InputError: it failed; with the last lines that it said.
  """
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    before, cpu = busy_seconds(), _children_seconds()
    started, start = time.time(), time.perf_counter()
    process = subprocess.Popen(
      command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err
    )
    watch = MemoryWatch(process.pid)
    try:
      status = process.wait()
      seconds = time.perf_counter() - start
    except BaseException:
      process.kill()
      process.wait()
      raise
    finally:
      watch.stop()
    after, cpu = busy_seconds(), _children_seconds() - cpu
    others = None
    if before is not None and after is not None:
      others = max(after - before, 0.0) / seconds
    out.seek(0)
    err.seek(0)
    said = out.read().decode(errors='replace')
    if status != 0:
      lines = (said + err.read().decode(errors='replace')).strip().splitlines()
      raise InputError(
        f'{name}: the process ended with status {status}', lines[-_SHOWN_LINES:]
      )
  return Measured(seconds, cpu, started, watch.resident, watch.anonymous, others, said)


def _children_seconds() -> float:
  times = os.times()
  return times.children_user + times.children_system


def busy_seconds() -> float | None:
  """Seconds for which cores have worked for others than this process and its children.

  Children count once they have been waited for.
  """
  try:
    fields = (_PROC / 'stat').read_text().split(maxsplit=9)[1:9]
  except OSError:
    return None
  user, nice, system, _idle, _waiting, *interrupts_and_steal = map(int, fields)
  busy = user + nice + system + sum(interrupts_and_steal)
  own = sum(os.times()[:4])
  return busy / os.sysconf('SC_CLK_TCK') - own


class MemoryWatch:
  """Largest memory of a process and its children, looked at every INTERVAL."""

  def __init__(self, pid: int):
    self.resident: int | None = None
    self.anonymous: int | None = None
    self._pids = [pid]
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def stop(self) -> None:
    self._stopped.set()
    self._thread.join()

  def _watch(self) -> None:
    n_looks = 0
    while not self._stopped.wait(INTERVAL):
      n_looks += 1
      if n_looks % _LOOKS_PER_SEARCH == 0:
        self._pids = family(self._pids[0])
      found = [memory for pid in self._pids if (memory := memory_of(pid))]
      if found:
        resident, anonymous = map(sum, zip(*found, strict=True))
        self.resident = max(self.resident or 0, resident)
        self.anonymous = max(self.anonymous or 0, anonymous)


def memory_of(pid: int) -> tuple[int, int] | None:
  """Bytes: the largest resident size so far, and the anonymous part now."""
  try:
    lines = (_PROC / str(pid) / 'status').read_text().splitlines()
  except OSError:  # it has ended, or the system has no /proc
    return None
  fields = dict(line.split(':', 1) for line in lines if ':' in line)
  if 'RssAnon' not in fields or 'VmHWM' not in fields:
    return None  # ended, not yet waited for
  resident, anonymous = (int(fields[key].split()[0]) for key in ('VmHWM', 'RssAnon'))
  return resident * 1024, anonymous * 1024


def family(pid: int) -> list[int]:
  """The process and its descendants."""
  found = [pid]
  for parent in found:
    for children in (_PROC / str(parent) / 'task').glob('*/children'):
      try:
        found += map(int, children.read_text().split())
      except OSError:  # that thread has ended
        continue
  return found
