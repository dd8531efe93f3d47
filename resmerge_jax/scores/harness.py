"""Results of Evalchemy and of lm-evaluation-harness: results_DATE.json.

Both write {'results': {TASK: {METRIC: fraction}}, 'config': ..., 'model_name': ...}.
Metrics of lm-evaluation-harness are called 'METRIC,FILTER'; Evalchemy's have no filter,
and stand beside what the benchmark kept (examples, statistics per repetition).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.scores.categories import Categories
from resmerge_jax.scores.found import Found


def read_results(
  path: pathlib.Path, categories: Categories, name: str | None
) -> tuple[list[Found], list[str]]:
  """Scores of a file, and its tasks that are in no category.

  `name` replaces the model's name in the file.

  Raises:
    InputError: no such file, a failed task, a run over a part of the questions, a
      metric that is not there, or no fraction from 0 to 1.
  """
  document = _load(path)
  results = document['results']
  _refuse_limited(path, document)
  found = []
  known: set[str] = set()
  for benchmark in (b for row in categories.values() for b in row):
    tasks = dict.fromkeys(task for task, _ in benchmark.harness if task in results)
    known |= set(tasks)
    for task in tasks:
      metrics = [metric for t, metric in benchmark.harness if t == task]
      where = f'{path}: {task}'
      percent = 100 * _fraction(results[task], metrics, where)
      model = name or _model_name(path, document)
      found.append(Found(model, benchmark.name, percent, where))
  return found, [task for task in results if task not in known]


def _load(path: pathlib.Path) -> Mapping[str, Any]:
  try:
    document = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(f'scores {path}: cannot be read: {error}') from error
  if not isinstance(document, dict) or not isinstance(document.get('results'), dict):
    raise InputError(
      f'scores {path}: no results in it',
      fix='give the results_DATE.json of Evalchemy or lm-evaluation-harness',
    )
  return document


def _refuse_limited(path: pathlib.Path, document: Mapping[str, Any]) -> None:
  config = document.get('config')
  limit = config.get('limit') if isinstance(config, dict) else None
  if limit is not None:
    raise InputError(
      f'scores {path}: the run was limited to {limit} of the questions of each task',
      why='its scores do not compare with those of whole runs',
      fix='evaluate without --limit',
    )


def _fraction(metrics: Any, wanted: list[str], where: str) -> float:
  if not isinstance(metrics, dict) or 'error' in metrics:
    error = metrics.get('error') if isinstance(metrics, dict) else metrics
    raise InputError(
      f'{where}: the evaluation failed: {error}', fix='evaluate this task again'
    )
  metric = next((metric for metric in wanted if metric in metrics), None)
  if metric is None:
    numbers = [k for k, v in metrics.items() if _is_number(v)]
    raise InputError(
      f'{where}: no {" or ".join(wanted)} among its metrics',
      fix=f'name one of {", ".join(numbers) or "none"} in a file for --categories',
    )
  value = metrics[metric]
  if not _is_number(value) or not 0 <= value <= 1:
    raise InputError(f'{where}: {metric} is {value!r}, expected a share from 0 to 1')
  return value


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _model_name(path: pathlib.Path, document: Mapping[str, Any]) -> str:
  name = document.get('model_name')
  if not isinstance(name, str) or not name:
    raise InputError(
      f'scores {path}: says no model_name', fix=f'write NAME={path}, as you call it'
    )
  return name
