"""The measurement itself: rounds of fresh processes in turn, A B C A B C."""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from resmerge_jax.bench import cases, process
from resmerge_jax.bench.cases import Benchmark, Case
from resmerge_jax.bench.groups import Group
from resmerge_jax.bench.rivals import (
  Rival,
  cache_folder,
  details,
  environment,
  rivals,
  warm_up,
)
from resmerge_jax.errors import InputError
from resmerge_jax.sizes import format_size

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Sample:
  """One process of one round. Seconds and bytes; `details` as the process told them.

  `cpu`: seconds of all its cores; `others`: cores that were busy with anything else meanwhile."""

  name: str
  round: int
  seconds: float
  cpu: float
  resident: int | None
  anonymous: int | None
  others: float | None
  details: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Result:
  """All samples of a case; `missing` tells why processes were not measured."""

  case: Case
  bytes_read: int
  bytes_written: int
  svd_layers: int
  samples: tuple[Sample, ...]
  missing: Mapping[str, str]
  notes: tuple[str, ...] = ()

  def as_json(self) -> dict[str, Any]:
    return {**dataclasses.asdict(self), 'case': cases.as_json(self.case)}


def measure(
  request: Benchmark, case: Case, group: Group, root: pathlib.Path, say: Say
) -> Result:
  """Measures one case in `request.repeat` rounds; `root` has room for an output.

  Raises:
    InputError: a process failed or wrote too little.
  """
  with tempfile.TemporaryDirectory(prefix='run-', dir=root) as folder:
    work = pathlib.Path(folder)
    env = environment(work)
    processes, missing = rivals(request, group, work)
    for name, why in missing.items():
      say(f'{case}: {name} left out: {why}')
    notes = _cold_cache_note(group)
    say(f'{case}: reading the inputs and the libraries once')
    for rival in warm_up(processes, group, work):
      _sample(rival, 0, env, work)
    samples = []
    for number in range(1, request.repeat + 1):
      for rival in processes:
        if rival.once and number > 1:
          continue
        if rival.name == 'ours_first':
          shutil.rmtree(cache_folder(work), ignore_errors=True)
        sample = _sample(rival, number, env, work)
        samples.append(sample)
        say(
          f'{case}: round {number} of {request.repeat}: '
          f'{rival.name} {sample.seconds:.2f} s'
        )
  return Result(
    case,
    group.bytes_read,
    group.bytes_written,
    request.svd_layers,
    tuple(samples),
    missing,
    notes,
  )


def _sample(
  rival: Rival, number: int, env: Mapping[str, str], work: pathlib.Path
) -> Sample:
  measured = process.run(rival.name, rival.command, {**env, **rival.env}, work)
  told = details(rival, measured, ended=measured.started + measured.seconds)
  if rival.output is not None:
    _check_output(rival)
    shutil.rmtree(rival.output)
    os.sync()  # nothing of this process is left to write when the next one starts
  return Sample(
    rival.name,
    number,
    measured.seconds,
    measured.cpu,
    measured.resident,
    measured.anonymous,
    measured.others,
    told,
  )


def _check_output(rival: Rival) -> None:
  """A process that wrote less than it should was not faster."""
  assert rival.output is not None
  files = list(rival.output.rglob('*.safetensors'))
  written = sum(file.stat().st_size for file in files)
  if written < rival.n_bytes:
    raise InputError(
      f'{rival.name}: wrote {format_size(written)} of weights, expected at least '
      f'{format_size(rival.n_bytes)}'
    )


def _cold_cache_note(group: Group) -> tuple[str, ...]:
  """Inputs that do not fit the memory are read from disk, again each time."""
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return ()
  fields = dict(line.split(':', 1) for line in lines)
  available = int(fields['MemAvailable'].split()[0]) * 1024
  needed = group.bytes_read + 2 * group.bytes_written
  if needed <= available:
    return ()
  return (
    f'inputs and outputs of {format_size(needed)} do not fit the '
    f'{format_size(available)} of available memory: times include reading from disk',
  )
