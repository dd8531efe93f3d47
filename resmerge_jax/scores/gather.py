"""All scores of the files and folders that were given."""

import csv
import pathlib
from collections.abc import Mapping, Sequence

from resmerge_jax.errors import InputError
from resmerge_jax.scores.bfcl import is_bfcl, read_bfcl
from resmerge_jax.scores.categories import OVERALL, Categories
from resmerge_jax.scores.found import Found, percent_of
from resmerge_jax.scores.harness import read_results

IN_FOLDERS = ('results_*.json', 'data_live.csv', 'data_non_live.csv')
PLAIN = ('model', 'benchmark', 'score')
Scores = dict[str, dict[str, Found]]  # model -> column -> score


def gather(words: Sequence[str], categories: Categories) -> tuple[Scores, list[str]]:
  """Scores by model and column, and what was left aside.

  `words`: [NAME=]PATH each, a results_*.json, a CSV file, or a folder with any of
  IN_FOLDERS at any depth. Models keep the order in which they come.

  Raises:
    InputError: nothing found, bad files, two different scores for one cell.
  """
  scores: Scores = {}
  notes = []
  for word in words:
    name, path = _split(word)
    files = _files(path)
    for file in files:
      if file.suffix == '.json':
        found, unknown = read_results(file, categories, name)
        if unknown:
          notes.append(f'{file}: in no category: {", ".join(unknown)}')
      else:
        found = _read_csv(file, categories, name)
      for score in found:
        _put(scores, score)
  if not scores:
    raise InputError(
      'no score of any benchmark found',
      notes or list(words),
      fix='evaluate on '
      + ', '.join(b.name for row in categories.values() for b in row),
    )
  return scores, notes


def _split(word: str) -> tuple[str | None, pathlib.Path]:
  name, equals, rest = word.partition('=')
  if not equals or pathlib.Path(word).exists():
    return None, pathlib.Path(word)
  if not name or not rest:
    raise InputError(f'{word}: an empty name or path', fix='write NAME=PATH')
  return name, pathlib.Path(rest)


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  if path.is_dir():
    files = sorted({f for pattern in IN_FOLDERS for f in path.rglob(pattern)})
    if not files:
      raise InputError(
        f'scores {path}: no {", ".join(IN_FOLDERS)} in this folder',
        fix='give the folder that the evaluation wrote, or the file itself '
        '(data_overall.csv is read only if it is named)',
      )
    return files
  if not path.is_file():
    raise InputError(f'scores {path}: no such file or folder')
  if path.suffix not in ('.json', '.csv'):
    raise InputError(f'scores {path}: neither .json nor .csv')
  return [path]


def _read_csv(
  path: pathlib.Path, categories: Categories, name: str | None
) -> list[Found]:
  try:
    with path.open(encoding='utf-8', newline='') as lines:
      reader = csv.DictReader(line for line in lines if not line.startswith('#'))
      rows = list(reader)
      header = list(reader.fieldnames or ())
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f'scores {path}: cannot be read: {error}') from error
  ragged = [
    f'row {i}'
    for i, row in enumerate(rows, 1)
    if None in row or None in row.values()  # too many cells, too few
  ]
  if ragged:
    raise InputError(f'scores {path}: rows with other cells than the head', ragged)
  if is_bfcl(header):
    return read_bfcl(rows, str(path), categories, name)
  if sorted(header) != sorted(PLAIN):
    raise InputError(
      f'scores {path}: the head is {",".join(header)}',
      fix=f'write {",".join(PLAIN)}; or give a score file of BFCL',
    )
  return _read_plain(rows, str(path), categories, name)


def _read_plain(
  rows: Sequence[Mapping[str, str]],
  where: str,
  categories: Categories,
  name: str | None,
) -> list[Found]:
  """Scores in percent, and printed averages: of a category, and Overall."""
  columns = [b.name for row in categories.values() for b in row]
  known = [*columns, *categories, OVERALL]
  unknown = [row['benchmark'] for row in rows if row['benchmark'] not in known]
  if unknown:
    raise InputError(
      f'{where}: in no category',
      dict.fromkeys(unknown),
      fix=f'known: {", ".join(known)}; others need a file for --categories',
    )
  if name and len({row['model'] for row in rows}) > 1:
    raise InputError(f'{where}: the name {name} for several models')
  found = []
  for row in rows:
    at = f'{where}: {row["model"]}: {row["benchmark"]}'
    percent = percent_of(row['score'], at)
    if percent is not None:
      model = name or row['model']
      text = row['score'].strip().removesuffix('%')
      found.append(Found(model, row['benchmark'], percent, at, text))
  if found and 0 < max(score.percent for score in found) <= 1:
    raise InputError(
      f'{where}: no score above 1',
      why='scores are in percent; these look like shares',
      fix='multiply them by 100',
    )
  return found


def _put(scores: Scores, score: Found) -> None:
  row = scores.setdefault(score.model, {})
  other = row.setdefault(score.column, score)
  if other.percent != score.percent:
    raise InputError(
      f'two scores for {score.model}, {score.column}',
      [f'{s.percent:.2f} in {s.source}' for s in (other, score)],
      fix='give the file you mean instead of its folder, or NAME=PATH to tell models '
      'apart',
    )
