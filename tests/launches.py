"""Several processes of one merge on this machine: started, watched, and never left behind."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT_S = 600  # ends what hangs; on a busy machine a start alone takes minutes
COMMAND = 'from resmerge_jax.cli import merge; merge.run()'


class Ended(NamedTuple):
  """How a process ended. `seconds`: since `Launch.wait` was called."""

  status: int
  out: str
  err: str
  seconds: float


class Launch:
  """Processes 0 to n-1 of one program; `processes[i]` may be sent signals."""

  def __init__(self, processes: Sequence[subprocess.Popen], logs: pathlib.Path):
    self.processes = processes
    self._logs = logs

  def out(self, i: int) -> str:
    """What process i has printed so far."""
    return (self._logs / f'{i}.out').read_text()

  def wait_for(self, i: int, text: str) -> None:
    """Returns when process i has printed `text`."""
    end = time.monotonic() + TIMEOUT_S
    while text not in self.out(i):
      assert time.monotonic() < end, (text, self.out(i))
      assert self.processes[i].poll() is None, (self._logs / f'{i}.err').read_text()
      time.sleep(0.02)

  def wait(self) -> list[Ended]:
    """Waits until all have ended."""
    start, ends = time.monotonic(), dict[int, float]()
    while len(ends) < len(self.processes):
      for i, process in enumerate(self.processes):
        if i not in ends and process.poll() is not None:
          ends[i] = time.monotonic() - start
      assert time.monotonic() - start < TIMEOUT_S, self._unfinished(ends)
      time.sleep(0.02)
    return [
      Ended(process.returncode, self.out(i), self._err(i), ends[i])
      for i, process in enumerate(self.processes)
    ]

  def _err(self, i: int) -> str:
    return (self._logs / f'{i}.err').read_text()

  def _unfinished(self, ends: dict[int, float]) -> str:
    running = [i for i in range(len(self.processes)) if i not in ends]
    errors = [f'{i}: {self._err(i)[-2000:]}' for i in range(len(self.processes))]
    return f'processes {running} have not ended\n' + '\n'.join(errors)


@contextlib.contextmanager
def started(
  work: pathlib.Path,
  arguments: Sequence[Sequence[object]],
  *,
  devices: int,
  script: str = COMMAND,
) -> Iterator[Launch]:
  """One process per entry of `arguments`, each with this many devices, in folder `work`.

  They print into files: a pipe that nobody reads would stop them.
  """
  logs = work.with_name(f'{work.name}-logs')
  for folder in (work, logs):
    folder.mkdir(parents=True, exist_ok=True)
  env = {
    k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))
  } | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'OPENBLAS_NUM_THREADS': '1',
    'PYTHONUNBUFFERED': '1',
    'PYTHONPATH': str(ROOT),
  }  # fmt: skip
  processes = []
  try:
    for i, words in enumerate(arguments):
      with (logs / f'{i}.out').open('w') as out, (logs / f'{i}.err').open('w') as err:
        command = [sys.executable, '-c', script, *map(str, words)]
        processes.append(
          subprocess.Popen(command, cwd=work, env=env, stdout=out, stderr=err)
        )
    yield Launch(processes, logs)
  finally:
    for process in processes:
      process.kill()
    for process in processes:
      process.wait()


def run(
  work: pathlib.Path,
  arguments: Sequence[Sequence[object]],
  *,
  devices: int,
  script: str = COMMAND,
) -> list[Ended]:
  with started(work, arguments, devices=devices, script=script) as launch:
    return launch.wait()


def joining(n_processes: int, words: Sequence[object] = ()) -> list[list[object]]:
  """Arguments of each of several processes: `words`, and the flags that let them meet."""
  port = free_port()
  return [
    [
      *words,
      f'--coordinator=127.0.0.1:{port}',
      f'--num_processes={n_processes}',
      f'--process_id={i}',
    ]
    for i in range(n_processes)
  ]


def free_port() -> int:
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]
