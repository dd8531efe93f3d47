"""Spectra of the updates, before and after their heads are removed (paper, Figure 4)."""

import dataclasses
from collections.abc import Sequence

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report import layers
from resmerge_jax.report.chart import RESIDUAL, WHOLE
from resmerge_jax.report.figure import Figure, Missing, Table
from resmerge_jax.report.layers import LayerFigure, Measure
from resmerge_jax.report.lines import Lines, Series
from resmerge_jax.report.values import (
  FAMILY_NAMES,
  Record,
  energy,
  families,
  field,
  numbers,
  of_groups,
  overall,
)

Groups = Sequence[GroupDiagnosis]
DIAGNOSE = 'needs the weights: tools.diagnose with --base and --experts'


def figures(groups: Groups) -> list[Figure | Missing]:
  # No further than every group goes: a line that ends early would seem to be flat.
  k = min(max(map(_depth, group.records), default=0) for group in groups)
  return [
    layers.draw(_energy_figure(1), groups),
    *(
      [_cumulative(groups, k), layers.draw(_energy_figure(k), groups)]
      if k > 1
      else [Missing('Energy of the first k directions', _MORE)]
    ),
    layers.draw(_GAP, groups),
    layers.draw(_STABLE, groups),
    _effective(groups),
  ]


_MORE = 'needs more than one singular value per expert: tools.diagnose --head_rank=4'
_STABLE = LayerFigure(
  'stable_rank',
  'Stable rank, with the head and without',
  'Stable rank is ‖D‖² / σ₁²: how many directions as strong as the first one the update '
  'would fill. It rises where the head held much of the update.',
  (
    Measure('whole update', field('stable_rank'), WHOLE),
    Measure('without its head', field('stable_rank_residual'), RESIDUAL),
  ),
  'stable rank',
  DIAGNOSE,
)
_GAP = LayerFigure(
  'gap',
  'Gap behind the head',
  '1 − σ₍ₖ₊₁₎ / σₖ, where the head has k directions. Near 0 the next direction is as '
  'strong, and which of them counts as the head is chance.',
  (Measure('gap', field('gap')),),
  'gap (no unit)',
  'recorded by a merge that computes heads, and by tools.diagnose',
  by_expert=True,
)
_EFFECTIVE = LayerFigure(
  'effective_rank',
  'Effective rank, with the head and without',
  'Effective rank is exp(entropy) of the shares σⱼ² / ‖D‖²: it counts all directions, '
  'weak ones too.',
  (
    Measure('whole update', field('effective_rank'), WHOLE),
    Measure('without its head', field('effective_rank_residual'), RESIDUAL),
  ),
  'effective rank',
  'needs whole spectra: tools.diagnose --effective_rank',
)


def _energy_figure(k: int) -> LayerFigure:
  if k == 1:
    title = 'Energy of the first direction, by layer'
    caption = (
      'σ₁² / ‖D‖²: the share of an update’s squared length that lies in its first '
      'singular direction. 100 % is an update of rank one.'
    )
  else:
    title = f'Energy of the first {k} directions, by layer'
    caption = (
      f'The share of an update’s squared length in its first {k} directions; beyond the '
      'rank of the head a bound from below.'
    )
  measure = Measure(title, energy(k))
  return LayerFigure(
    'leading_energy' if k == 1 else 'top_energy', title, caption, (measure,),
    '% of ‖D‖²', DIAGNOSE, by_expert=True,
  )  # fmt: skip


def _depth(record: Record) -> int:
  """How many leading directions a record tells of."""
  return max(
    (len(of_one) for of_one in record.get('energy') or () if of_one), default=0
  )


def _cumulative(groups: Groups, most: int) -> Figure:
  """Energy over k, per expert of one group, or per group; means over matrices."""
  ks = tuple(range(1, most + 1))
  lines = layers.apart(groups)
  panels, rows = [], []
  for family in families(groups, [energy(1)]):
    means = [
      [overall(group, energy(k), expert, family) for k in ks]
      for _, group, expert in lines
    ]
    series = tuple(
      Series(key, tuple(p.mean if p else None for p in of_line))
      for (key, _, _), of_line in zip(lines, means, strict=True)
    )
    panels.append(
      Lines(
        FAMILY_NAMES[family], ks, series, 'number of leading directions k', '% of ‖D‖²',
        held=(100.0,),
      )
    )  # fmt: skip
    at_k = zip(*means, strict=True)
    rows += [
      (family, k, *(p.mean if p else None for p in points))
      for k, points in zip(ks, at_k, strict=True)
    ]
  return Figure(
    'cumulative_energy',
    'Energy of the first k directions',
    'The share of an update’s squared length in its first k singular directions: mean '
    'over the matrices of a family. A line that starts high and soon flattens is a '
    'concentrated update. Beyond the rank of the head it is a bound from below.',
    tuple(key for key, _, _ in lines),
    tuple(panels),
    Table(('family', 'k', *(key.label for key, _, _ in lines)), tuple(rows)),
  )


def _effective(groups: Groups) -> Figure | Missing:
  """With the way it was computed, and the largest standard error of an estimate."""
  records = [record for _, record in of_groups(groups)]
  ways = [
    record['effective_rank_by'] for record in records if record.get('effective_rank_by')
  ]
  estimated = ways.count('estimate')
  said = f' Computed exactly for {len(ways) - estimated:,} matrices'
  if estimated:
    errors = [
      error / rank
      for record in records
      if record.get('effective_rank_by') == 'estimate'
      for error, rank in zip(
        numbers(record.get('effective_rank_error')),
        numbers(record.get('effective_rank')),
        strict=False,
      )
      if rank
    ]
    said += f', estimated for {estimated:,}'
    if errors:
      said += f' (one standard error is at most {100 * max(errors):.2g} % of the rank)'
  spec = dataclasses.replace(_EFFECTIVE, caption=f'{_EFFECTIVE.caption}{said}.')
  return layers.draw(spec, groups)
