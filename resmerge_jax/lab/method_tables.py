"""The tables of a comparison. Accuracies and their differences are in per cent."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from resmerge_jax.lab.answers import prompts_of
from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.scores import Measured, Scores, paired_difference
from resmerge_jax.lab.tables import Row
from resmerge_jax.lab.variants import REFERENCE, Entry


class Table(NamedTuple):
  name: str
  title: str
  text: str
  rows: list[Row]


class Columns:
  """What follows from right answers, averaged over seeds.

  Retention (accuracy over the expert's) and the gain kept (the share of what the expert
  gained over the base) are of each merged expert on its own task, averaged.
  """

  def __init__(
    self, recipe: GroupRecipe, kinds: Sequence[str], seeds: Sequence[Measured]
  ):
    self.recipe, self.kinds = recipe, kinds
    self.models = [seed.scores for seed in seeds]
    self.contents = {
      task: [e.content for e in prompts_of(task, recipe.test_prompts, True).examples]
      for task in recipe.tasks
    }

  def accuracy(self, seeds: Sequence[Scores], name: str) -> Row:
    """On each task, and their mean."""
    shares_T = np.mean(
      [[found[name][t].mean() for t in self.recipe.tasks] for found in seeds], axis=0
    )
    return tuple(percent(share) for share in (*shares_T, shares_T.mean()))

  def kept(self, seeds: Sequence[Scores], name: str) -> Row:
    """Retention, gain kept."""
    ratios = []
    for models, found in zip(self.models, seeds, strict=True):
      for expert, (kind, task) in self.recipe.experts.items():
        if kind in self.kinds:
          base, own = models['base'][task].mean(), models[expert][task].mean()
          merge = found[name][task].mean()
          ratios.append((_ratio(merge, own), _ratio(merge - base, own - base)))
    return tuple(percent(share) for share in np.mean(ratios, axis=0))

  def difference(self, seeds: Sequence[Scores], name: str) -> Row:
    """To task arithmetic, its error over prompts, that over seeds."""
    found = paired_difference(seeds, name, REFERENCE, self.contents)
    of_seeds = '' if found.of_seeds is None else percent(found.of_seeds)
    return (f'{100 * found.mean:+.1f}', percent(found.of_prompts), of_seeds)

  @property
  def head(self) -> Row:
    return (*self.recipe.tasks, 'mean')


_KEPT = ('retention', 'gain kept')
_DIFFERENCE = (f'minus {REFERENCE}', 'SE prompts', 'SE seeds')


def comparison_tables(
  recipe: GroupRecipe,
  kinds: Sequence[str],
  seeds: Sequence[Measured],
  entries: Mapping[str, Entry],
) -> list[Table]:
  columns = Columns(recipe, kinds, seeds)
  return [
    _models(columns),
    _methods(columns, [seed.scores for seed in seeds], entries),
    _tuned(columns, seeds, entries),
    _parts(columns, seeds),
    _curves(columns, seeds),
    _geometry(seeds),
    _layers(seeds),
  ]


def _models(columns: Columns) -> Table:
  rows: list[Row] = [('model', *columns.head)]
  rows += [
    (name, *columns.accuracy(columns.models, name))
    for name in ('base', *columns.recipe.experts)
  ]
  n_seeds = len(columns.models)
  text = (
    f'Right answers, % of {columns.recipe.test_prompts} test prompts per task, '
    + (f'mean of {n_seeds} seeds.' if n_seeds > 1 else 'one seed.')
  )
  return Table('models', 'Base and experts', text, rows)


def _methods(
  columns: Columns, seeds: Sequence[Scores], entries: Mapping[str, Entry]
) -> Table:
  rows: list[Row] = [('method', 'settings', *columns.head, *_KEPT, *_DIFFERENCE)]
  rows += [
    (
      name,
      entry.setting,
      *columns.accuracy(seeds, name),
      *columns.kept(seeds, name),
      *columns.difference(seeds, name),
    )
    for name, entry in entries.items()
  ]
  text = (
    "Settings: A.2 of the ResMerge paper; the authors' defaults; parts of ResMerge "
    '(ablation); ours. Differences are of means, with standard errors over prompts (of '
    'the average over seeds) and over seeds.'
  )
  return Table('methods', 'Methods as they are', text, rows)


def _tuned(
  columns: Columns, seeds: Sequence[Measured], entries: Mapping[str, Entry]
) -> Table:
  tuned = [seed.tuned for seed in seeds]
  rows: list[Row] = [('method', 'length', *columns.head, *_KEPT, *_DIFFERENCE)]
  rows += [
    (
      name,
      ' / '.join(f'{seed.factors[name]:g}' for seed in seeds),
      *columns.accuracy(tuned, name),
      *columns.kept(tuned, name),
      *columns.difference(tuned, name),
    )
    for name in entries
  ]
  text = (
    'The update of every method times the factor that is best on '
    f'{columns.recipe.check_prompts} training prompts per task (one factor per seed). '
    f'Differences are to {REFERENCE}, tuned likewise.'
  )
  return Table('tuned', 'With the length chosen on training prompts', text, rows)


def _parts(columns: Columns, seeds: Sequence[Measured]) -> Table:
  """Of each expert, and of each kind averaged over its experts."""
  rows: list[Row] = [
    ('expert', 'base', 'expert', 'head', 'residual', "head's gain", "residual's gain")
  ]
  by_kind: dict[str, list[np.ndarray]] = {}
  for name, (kind, task) in columns.recipe.experts.items():
    shares = np.mean(
      [
        [
          seed.scores['base'][task].mean(),
          seed.scores[name][task].mean(),
          *(right.mean() for right in seed.parts[name].values()),
        ]
        for seed in seeds
      ],
      axis=0,
    )
    rows.append((name, *_part_row(shares)))
    by_kind.setdefault(kind, []).append(shares)
  rows += [
    (f'mean of {kind}', *_part_row(np.mean(found, axis=0)))
    for kind, found in by_kind.items()
  ]
  text = (
    'Each expert on its own task: its head (the leading singular triplet of every '
    'hidden matrix) alone, and its update without that. The gains are shares of the '
    "expert's; they need not add up."
  )
  return Table('parts', 'Parts of one expert', text, rows)


def _part_row(shares: np.ndarray) -> Row:
  base, expert, head, residual = shares
  gains = (_ratio(part - base, expert - base) for part in (head, residual))
  return tuple(percent(share) for share in (*shares, *gains))


def _curves(columns: Columns, seeds: Sequence[Measured]) -> Table:
  rows: list[Row] = [('curve', 'value', *columns.head, *_DIFFERENCE)]
  for curve, values in seeds[0].curves.items():
    found = [
      {REFERENCE: seed.scores[REFERENCE], **seed.curves[curve]} for seed in seeds
    ]
    for value in values:
      row = (*columns.accuracy(found, value), *columns.difference(found, value))
      rows.append((curve, value, *row))
  text = 'ResMerge of the paper with another head rank k or budget rho.'
  return Table('curves', 'Head rank and budget', text, rows)


def _geometry(seeds: Sequence[Measured]) -> Table:
  rows: list[Row] = [('quantity', *(f'{i + 1}' for i in range(len(seeds))))]
  rows += [
    (name, *(f'{seed.geometry[name]:.3g}' for seed in seeds))
    for name in seeds[0].geometry
  ]
  text = (
    'By seed. Cosine of whole task vectors, mean over pairs; s_R, c_R, S_H, alpha_R and '
    "the head's share of energy, means over hidden matrices; zeros, the share of "
    "entries that are exactly the base's."
  )
  return Table('geometry', 'Geometry of the merged experts', text, rows)


def _layers(seeds: Sequence[Measured]) -> Table:
  first = seeds[0].layers
  quantities = list(next(iter(first.values())))
  rows: list[Row] = [('layer', *quantities)]
  rows += [
    (
      layer,
      *(
        f'{np.mean([seed.layers[layer][quantity] for seed in seeds]):.3g}'
        for quantity in quantities
      ),
    )
    for layer in first
  ]
  text = 'Means over the hidden matrices of a layer, and over seeds.'
  return Table('layers', 'Geometry by layer', text, rows)


def percent(share: float) -> str:
  return f'{100 * share:.1f}'


def _ratio(part: float, whole: float) -> float:
  return part / whole if whole else float('nan')
