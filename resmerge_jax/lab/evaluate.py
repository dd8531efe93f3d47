"""A group, and merges of it, measured: tables and per-prompt results."""

import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from resmerge_jax.errors import InputError
from resmerge_jax.lab.group import RECORD, model_names
from resmerge_jax.lab.plot import plot_models
from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.scores import score, update_of
from resmerge_jax.lab.tables import (
  as_csv,
  markdown,
  score_rows,
  too_small_gains,
  update_rows,
)

Say = Callable[[str], None]


def evaluate_group(
  recipe: GroupRecipe,
  folder: pathlib.Path,
  precision: str,
  models: Sequence[pathlib.Path],
  say: Say,
) -> str:
  """Tables of the group in `folder` and of more `models`, as Markdown.

  Writes them to evaluation.md and evaluation.csv, a picture of the first to
  evaluation.png, and which prompts each model gets right to evaluation.json.

  Raises:
    InputError: a model of the group is missing.
  """
  check_complete(recipe, folder)
  paths = {name: folder / name / precision for name in model_names(recipe)}
  paths |= {str(path): path for path in models}
  scores: dict[str, dict[str, np.ndarray]] = {}
  for name, path in paths.items():
    scores[name] = score(path, recipe.tasks, recipe.test_prompts)
    say(f'evaluated {name}')
  rows = score_rows(scores, recipe.tasks)
  updates = {
    name: update_of(path, paths['base'])
    for name, path in paths.items()
    if name != 'base'
  }
  moved = update_rows(updates, precision)
  right = {n: {t: r.tolist() for t, r in found.items()} for n, found in scores.items()}
  text = '\n'.join(
    [
      f'Right answers, % of {recipe.test_prompts} test prompts ({precision})\n',
      markdown(rows),
      'Changes of the weights\n',
      markdown(moved),
    ]
  )
  if small := too_small_gains(scores, recipe):
    text += '\nToo little was learned:\n' + ''.join(f'- {line}\n' for line in small)
  (folder / 'evaluation.md').write_text(text)
  (folder / 'evaluation.csv').write_text(as_csv(rows))
  (folder / 'evaluation.json').write_text(json.dumps(right) + '\n')
  plot_models(rows[:-1], folder / 'evaluation.png')  # without its errors
  return text


def check_complete(recipe: GroupRecipe, folder: pathlib.Path) -> None:
  """Raises unless all models of the group are in `folder`."""
  missing = [
    name for name in model_names(recipe) if not (folder / name / RECORD).is_file()
  ]
  if missing:
    raise InputError(
      f'{folder} lacks models of the group',
      missing,
      fix='python -m tools.lab train, with the same --config and --output',
    )
