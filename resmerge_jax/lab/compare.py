"""All methods on groups of several seeds: tables with paired standard errors."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from resmerge_jax.lab.evaluate import check_complete
from resmerge_jax.lab.merges import (
  best_length,
  lengthened,
  load_group,
  merged,
  score_merge,
)
from resmerge_jax.lab.plot import plot_methods
from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.scores import Scores, paired_difference
from resmerge_jax.lab.tables import Row, as_csv, markdown
from resmerge_jax.lab.variants import REFERENCE, Method

Say = Callable[[str], None]
_TUNED = ', length tuned'
_HEAD = (
  'mean',
  'retention',
  'gain kept',
  f'minus {REFERENCE}',
  'SE prompts',
  'SE seeds',
  'length',
)


def compare_groups(
  recipe: GroupRecipe,
  folders: Sequence[pathlib.Path],
  methods: Mapping[str, Method],
  precision: str,
  output: pathlib.Path,
  say: Say,
) -> str:
  """The methods table of the groups in `folders`, one per seed, as Markdown.

  Every method is scored as it is, and with its update's length chosen on training
  prompts. Writes `output`.md, .csv, .json (right answers by prompt) and .png.

  Raises:
    InputError: a model of a group is missing.
  """
  for folder in folders:
    check_complete(recipe, folder)
  seeds: list[dict[str, dict[str, np.ndarray]]] = []
  factors: dict[str, list[float]] = {}
  for folder in folders:
    group = load_group(recipe, folder, precision)
    found = {
      name: score_merge(group, tensors, test=True)
      for name, tensors in {'base': group.base, **group.experts}.items()
    }
    for name, method in methods.items():
      tensors = merged(group, method)
      found[name] = score_merge(group, tensors, test=True)
      factor = best_length(group, tensors)
      longer = lengthened(group, tensors, factor)
      found[name + _TUNED] = score_merge(group, longer, test=True)
      factors.setdefault(name + _TUNED, []).append(factor)
      mean = np.mean([right.mean() for right in found[name].values()])
      say(f'{folder.name}: {name}: {mean:.1%}')
    seeds.append(found)
  rows = method_rows(recipe, seeds, factors)
  text = markdown(rows)
  output.with_suffix('.md').write_text(text)
  output.with_suffix('.csv').write_text(as_csv(rows))
  raw = [
    {name: {task: r.tolist() for task, r in by.items()} for name, by in found.items()}
    for found in seeds
  ]
  output.with_suffix('.json').write_text(json.dumps(raw) + '\n')
  plot_methods(rows, output.with_suffix('.png'))
  return text


def method_rows(
  recipe: GroupRecipe,
  seeds: Sequence[Scores],
  factors: Mapping[str, Sequence[float]],
) -> list[Row]:
  """A head, and per model: % right, averaged over seeds, and what follows from it.

  Retention and the gain kept are of each expert on its own task, averaged.
  """
  rows: list[Row] = [('model', *recipe.tasks, *_HEAD)]
  for name in seeds[0]:
    shares_SxT = np.array(
      [[found[name][task].mean() for task in recipe.tasks] for found in seeds]
    )
    numbers = [*shares_SxT.mean(axis=0), shares_SxT.mean()]
    row = [name, *(f'{100 * number:.1f}' for number in numbers)]
    is_merge = name != 'base' and name not in recipe.experts
    kept = [_kept(recipe, found, name) for found in seeds]
    row += [f'{100 * n:.1f}' for n in np.mean(kept, axis=0)] if is_merge else ['', '']
    difference, of_prompts, of_seeds = paired_difference(seeds, name, REFERENCE)
    row += [f'{100 * difference:+.1f}', f'{100 * of_prompts:.1f}']
    row.append('' if of_seeds is None else f'{100 * of_seeds:.1f}')
    row.append(' / '.join(f'{factor:g}' for factor in factors.get(name, ())))
    rows.append(tuple(row))
  return rows


def _kept(recipe: GroupRecipe, found: Scores, name: str) -> tuple[float, float]:
  """Mean over experts: accuracy over the expert's, and the share of its gain."""
  ratios = []
  for expert, (_, task) in recipe.experts.items():
    base, own = found['base'][task].mean(), found[expert][task].mean()
    merge = found[name][task].mean()
    ratios.append((_ratio(merge, own), _ratio(merge - base, own - base)))
  retention, gain_kept = np.mean(ratios, axis=0)
  return retention, gain_kept


def _ratio(part: float, whole: float) -> float:
  return part / whole if whole else float('nan')
