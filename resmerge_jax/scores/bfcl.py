"""Score files of the Berkeley Function Calling Leaderboard (bfcl_eval).

A row per model in data_live.csv, data_non_live.csv and data_overall.csv. What was not
evaluated is N/A, and counts as 0 in the summary columns: such a summary is refused, and
one of which nothing was evaluated is missing.
"""

from collections.abc import Mapping, Sequence

from resmerge_jax.errors import InputError
from resmerge_jax.scores.categories import Categories
from resmerge_jax.scores.found import Found, percent_of

MODEL = 'Model'
_DETECTIONS = ('Irrelevance Detection', 'Relevance Detection')
_AST = 'AST Summary'
_MISSING = 'N/A'


def is_bfcl(header: Sequence[str]) -> bool:
  return {'Rank', MODEL} <= set(header)


def read_bfcl(
  rows: Sequence[Mapping[str, str]],
  where: str,
  categories: Categories,
  name: str | None,
) -> list[Found]:
  """Scores of all rows; `name` replaces the model's where there is but one.

  Raises:
    InputError: none of the columns, a name for several models, a summary with parts
      that were not evaluated.
  """
  if name and len(rows) != 1:
    raise InputError(
      f'{where}: the name {name} for {len(rows)} models',
      [row[MODEL] for row in rows],
      fix='leave out NAME=, or evaluate into a folder for each model',
    )
  benchmarks = [b for row in categories.values() for b in row if b.bfcl]
  header = list(rows[0]) if rows else []
  columns = {b.name: next((c for c in b.bfcl if c in header), None) for b in benchmarks}
  if not any(columns.values()):
    raise InputError(
      f'{where}: none of the columns {", ".join(c for b in benchmarks for c in b.bfcl)}',
      fix='give data_live.csv, data_non_live.csv or data_overall.csv',
    )
  found = []
  for row in rows:
    for benchmark, column in columns.items():
      if column is None:
        continue
      at = f'{where}: {row[MODEL]}: {column}'
      percent = percent_of(row[column], at)
      if percent is not None and _is_whole(row, column, at):
        found.append(Found(name or row[MODEL], benchmark, percent, at, row[column]))
  return found


def _is_whole(row: Mapping[str, str], column: str, where: str) -> bool:
  """Whether all parts of a summary were evaluated; False if none was."""
  parts = _parts(row, column)
  missing = [part for part in parts if row[part] == _MISSING]
  if missing and len(missing) < len(parts):
    raise InputError(
      f'{where} is {row[column]}, but parts of it were not evaluated',
      missing,
      why='BFCL counts them as 0',
      fix='evaluate all of live or non_live (bfcl generate, then bfcl evaluate)',
    )
  return not missing


def _parts(row: Mapping[str, str], column: str) -> list[str]:
  """Columns that the summary `column` is made of, as far as they are in the file."""
  if _AST in row:  # data_live.csv or data_non_live.csv
    parts = [c for c in row if c.endswith(' AST')]
    # V3 counts detections in; V4 does not, and the summary is that of the AST checks.
    return parts if row[_AST] == row[column] else [*parts, *_present(row, _DETECTIONS)]
  prefix = column.partition(' ')[0] + ' '
  parts = [c for c in row if c.startswith(prefix) and c != column]
  return parts + (_present(row, _DETECTIONS[1:]) if prefix == 'Live ' else [])


def _present(row: Mapping[str, str], columns: Sequence[str]) -> list[str]:
  return [column for column in columns if column in row]
