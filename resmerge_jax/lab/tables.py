"""Scores and updates as rows: for reading (Markdown) and for computing (CSV)."""

import csv
import io
from collections.abc import Mapping, Sequence

from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.scores import Scores, Update, standard_error

LEAST_GAIN = 0.25  # of an RL expert over the base, on its own task
Row = tuple[str, ...]


def score_rows(scores: Scores, tasks: Sequence[str]) -> list[Row]:
  """A head, and per model the percentage right on each task and their mean."""
  rows: list[Row] = [('model', *tasks, 'mean')]
  for name, found in scores.items():
    shares = [float(found[task].mean()) for task in tasks]
    rows.append(
      (name, *(f'{100 * s:.1f}' for s in (*shares, sum(shares) / len(tasks))))
    )
  errors = [standard_error(found[task]) for found in scores.values() for task in tasks]
  rows.append(
    ('largest standard error', *('' for _ in tasks), f'{100 * max(errors):.1f}')
  )
  return rows


def update_rows(updates: Mapping[str, Update], precision: str) -> list[Row]:
  rows: list[Row] = [
    ('expert', 'length', '% of the base', f'% exact zeros in {precision}')
  ]
  for name, found in updates.items():
    numbers = (found.length, 100 * found.relative, 100 * found.zeros)
    rows.append((name, *(f'{number:.3g}' for number in numbers)))
  return rows


def too_small_gains(scores: Scores, recipe: GroupRecipe) -> list[str]:
  """RL experts that gained less on their own task than an expert of the lab must."""
  found = []
  for name, (kind, task) in recipe.experts.items():
    gain = scores[name][task].mean() - scores['base'][task].mean()
    if kind == 'rl' and gain < LEAST_GAIN:
      found.append(
        f'{name}: gains {100 * gain:.1f} points on {task}, less than '
        f'{100 * LEAST_GAIN:.0f}'
      )
  return found


def markdown(rows: Sequence[Row]) -> str:
  head, *body = [f'| {" | ".join(row)} |\n' for row in rows]
  return ''.join([head, '| --- ' + '| --: ' * (len(rows[0]) - 1) + '|\n', *body])


def as_csv(rows: Sequence[Row]) -> str:
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  return text.getvalue()
