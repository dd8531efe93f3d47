"""A whole benchmark: groups, rounds, tables, picture, raw numbers."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

from resmerge_jax.bench import machine, report
from resmerge_jax.bench.cases import Benchmark
from resmerge_jax.bench.curves import curves
from resmerge_jax.bench.groups import prepare
from resmerge_jax.bench.plot import plot_sweep
from resmerge_jax.bench.rounds import Result, Say, measure
from resmerge_jax.errors import InputError


def run_benchmark(
  request: Benchmark,
  *,
  work_dir: pathlib.Path,
  output: pathlib.Path,
  json_file: pathlib.Path | None,
  say: Say,
) -> Iterator[str]:
  """Yields the lines of the report, of each case as soon as it is measured.

  `json_file` is written anew after every case, so an interrupted run leaves what it
  has. The picture of a sweep goes to `output`/sweep_KEY.png.

  Raises:
    InputError: a folder cannot be made, too little space, a process failed.
  """
  for folder in (work_dir, output, *([json_file.parent] if json_file else [])):
    _make_folder(folder)
  work_dir = work_dir.resolve()  # the processes have another working folder
  groups = prepare(request.cases, work_dir / 'groups', say)
  found = machine.facts()
  yield machine.describe(found)
  results: list[Result] = []
  for case in request.cases:
    results.append(measure(request, case, groups[case], work_dir, say))
    if json_file is not None:
      _save(json_file, request, found, results)
    yield ''
    yield from report.describe(results[-1])
  if request.sweep is not None:
    drawn = curves(request.sweep, results)
    yield from report.describe_sweep(request.sweep, results, drawn)
    picture = output / f'sweep_{request.sweep.key}.png'
    plot_sweep(drawn, picture)
    yield f'  {picture}'


def _make_folder(path: pathlib.Path) -> None:
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'{path}: cannot be made: {error.strerror}') from error


def _save(
  path: pathlib.Path, request: Benchmark, found: dict, results: Sequence[Result]
) -> None:
  content = {
    'machine': found,
    'sweep': request.sweep and dataclasses.asdict(request.sweep),
    'cases': [result.as_json() for result in results],
  }
  path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
