"""What the settings of a sweep changed: sweep.csv and sweep.png, from their records."""

import csv
import importlib.util
import io
import json
import math
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from resmerge_jax.config import MergeConfig, to_plain
from resmerge_jax.pipeline.sweep_plot import plot_settings
from resmerge_jax.writers.check import resolved
from resmerge_jax.writers.disk import write_durably
from resmerge_jax.writers.partial import explained

TABLE, PICTURE = 'sweep.csv', 'sweep.png'
# Of a record, what is summed over the model or is no result of the setting.
_NOT_MEANS = {'update_norm', 'rounding_loss', 'shape'}
_PLACES = {'output', 'head_ranks', 'overwrite'}


def write_table(folder: pathlib.Path, configs: Mapping[str, MergeConfig]) -> list[str]:
  """Writes table and picture into `folder`, beside the settings; notes for the user.

  Raises:
    StoppedError: the disk refuses.
  """
  fields = varying(configs)
  rows = [
    {'setting': name, **fields[name], **summary(_records(resolved(config.output)))}
    for name, config in configs.items()
  ]
  path = folder / TABLE
  with explained(f'cannot write {path}', path):
    write_durably(path, as_csv(rows).encode())
    if importlib.util.find_spec('matplotlib') is None:
      return [
        f'{PICTURE} is not drawn: matplotlib is not installed '
        "(pip install 'resmerge_jax[plots]')"
      ]
    plot_settings(rows, [*next(iter(fields.values()))], folder / PICTURE)
  return []


def varying(configs: Mapping[str, MergeConfig]) -> dict[str, dict[str, Any]]:
  """By setting: the fields, by their paths, in which the settings differ."""
  flat = {name: dict(_flat(to_plain(config))) for name, config in configs.items()}
  paths = dict.fromkeys(path for fields in flat.values() for path in fields)
  paths = {
    path: None
    for path in paths
    if path not in _PLACES and len({repr(f.get(path)) for f in flat.values()}) > 1
  }
  return {
    name: {path: fields.get(path, '') for path in paths}
    for name, fields in flat.items()
  }


def _flat(value: Any, path: str = '') -> list[tuple[str, Any]]:
  """Paths and values; a post-processor goes by its name."""
  if isinstance(value, Mapping):
    parts = list(value.items())
  elif path == 'post':
    parts = [(name, params) for name, params in value]
  else:
    return [(path, value)]
  return [
    found
    for name, part in parts
    for found in _flat(part, f'{path}.{name}' if path else name)
  ]


def summary(records: Iterable[Mapping[str, Any]]) -> dict[str, float | int]:
  """Numbers of one setting.

  `update_norm`: Frobenius norm of all updates; `rounding_loss`: of what rounding to the
  output's dtype lost, relative to it. `mean KEY`: over the tensors that have this number.
  `branch KEY`: how many tensors took it; `float64_heads`: heads solved again on the host.
  """
  update_sq = loss_sq = 0.0
  numbers: dict[str, list[float]] = {}
  branches: Counter[str] = Counter()
  heads = 0
  for record in records:
    norm = record.get('update_norm', 0.0)
    update_sq += norm**2
    loss_sq += (record.get('rounding_loss', 0.0) * norm) ** 2
    heads += sum(record.get('float64_head', ()))
    if 'branch' in record:
      branches[record['branch']] += 1
    for key, value in record.items():
      if isinstance(value, float | int) and key not in _NOT_MEANS:
        numbers.setdefault(key, []).append(value)
  return {
    'update_norm': math.sqrt(update_sq),
    'rounding_loss': math.sqrt(loss_sq / update_sq) if update_sq else 0.0,
    **{f'mean {key}': math.fsum(all_) / len(all_) for key, all_ in numbers.items()},
    **{f'branch {branch}': n for branch, n in sorted(branches.items())},
    **({'float64_heads': heads} if 'S_H' in numbers or heads else {}),
  }


def as_csv(rows: list[dict[str, Any]]) -> str:
  """One line per row; a number that a row lacks is left empty, a count is 0."""
  keys = list(dict.fromkeys(key for row in rows for key in row))
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(keys)
  for row in rows:
    writer.writerow(
      row.get(key, 0 if key.startswith('branch ') else '') for key in keys
    )
  return file.getvalue()


def _records(folder: pathlib.Path) -> list[dict[str, Any]]:
  lines = (folder / 'records.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]
