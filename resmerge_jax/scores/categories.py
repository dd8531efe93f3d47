"""Which benchmark belongs to which category: a small table in a TOML file."""

import dataclasses
import pathlib
import tomllib
from typing import Any

from resmerge_jax.errors import InputError

PAPER = pathlib.Path(__file__).with_name('paper.toml')
OVERALL = 'Overall'
_FIELDS = ('harness', 'bfcl', 'dataset')


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A column of the table.

  `harness`: (task, metric) of a harness' results, the first that is there counts.
  `bfcl`: columns of BFCL's score files. `dataset`: what is measured, for reading only.
  """

  name: str
  harness: tuple[tuple[str, str], ...] = ()
  bfcl: tuple[str, ...] = ()
  dataset: str = ''


Categories = dict[str, tuple[Benchmark, ...]]


def load_categories(path: pathlib.Path | None = None) -> Categories:
  """Category -> benchmarks, in the order of the file; without a path the paper's.

  Raises:
    InputError: no such file, no TOML, or not of that form.
  """
  path = path or PAPER
  try:
    document = tomllib.loads(path.read_text('utf-8'))
  except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
    raise InputError(f'categories {path}: cannot be read: {error}') from error
  problems: list[str] = []
  found: Categories = {}
  for category, entries in document.items():
    if not isinstance(entries, dict) or not entries:
      problems.append(f'{category}: not a category with benchmarks in it')
      continue
    found[category] = tuple(
      _benchmark(name, entry, f'{category}.{name}', problems)
      for name, entry in entries.items()
    )
  if not document:
    problems.append('no category in it')
  problems += _clashes(found)
  if problems:
    raise InputError(
      f'categories {path}: not a table of benchmarks',
      problems,
      fix="write [Maths.AIME24], then harness = ['AIME24:accuracy_avg'] below it; "
      f'{PAPER} is one',
    )
  return found


def _benchmark(name: str, entry: Any, where: str, problems: list[str]) -> Benchmark:
  if not isinstance(entry, dict):
    problems.append(f'{where}: not a table')
    return Benchmark(name)
  unknown = sorted(set(entry) - set(_FIELDS))
  if unknown:
    problems.append(f'{where}: unknown {", ".join(unknown)}; known: {_FIELDS}')
  lists = {key: entry.get(key, []) for key in ('harness', 'bfcl')}
  for key, texts in lists.items():
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
      problems.append(f'{where}: {key} is no list of texts')
      lists[key] = []
  pairs = [text.partition(':')[::2] for text in lists['harness']]
  problems += [
    f'{where}: harness {task!r} has no metric; write TASK:METRIC'
    for task, metric in pairs
    if not metric
  ]
  return Benchmark(
    name, tuple(pairs), tuple(lists['bfcl']), str(entry.get('dataset', ''))
  )


def _clashes(categories: Categories) -> list[str]:
  """Names that would mean two columns."""
  names = [b.name for row in categories.values() for b in row]
  names += [*categories, OVERALL]
  return [
    f'{name!r} names two columns'
    for name in dict.fromkeys(names)
    if names.count(name) > 1
  ]
