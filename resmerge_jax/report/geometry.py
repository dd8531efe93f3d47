"""How the updates lie to each other: heads against residuals (paper, Figures 5 and 7)."""

import dataclasses
import itertools
from collections.abc import Sequence

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report import layers
from resmerge_jax.report.chart import HEAD, RESIDUAL, WHOLE, Key, brief
from resmerge_jax.report.figure import Figure, Missing, Table
from resmerge_jax.report.layers import LayerFigure, Measure
from resmerge_jax.report.rows import Bars, Boxes, Spread
from resmerge_jax.report.spectral import DIAGNOSE
from resmerge_jax.report.values import FAMILY_NAMES, field, five, is_matrix, numbers

Groups = Sequence[GroupDiagnosis]
MOST_PAIRS = 36  # of one panel: nine experts
_HEAD = Key('heads', HEAD, kind='box')
_RESIDUAL = Key('residuals', RESIDUAL, 1, kind='box')
_FIELDS = (('cos_head_pairs', _HEAD), ('cos_residual_pairs', _RESIDUAL))


def figures(groups: Groups) -> list[Figure | Missing]:
  return [
    layers.draw(_agreement(groups), groups),
    layers.draw(_retention(groups), groups),
    _cosines(groups),
    layers.draw(_COSINES_BY_LAYER, groups),
    layers.draw(_SIGNS, groups),
    _shared(groups),
  ]


def chance(n_experts: int) -> float:
  """c_R, and retention, of n vectors of one length at right angles."""
  return n_experts**-0.5


def _right_angles(groups: Groups, what: str) -> tuple[tuple[float, str], ...]:
  counts = sorted({len(group.expert_ids) for group in groups})
  return tuple(
    (chance(n), f'{what} of {n} at right angles: 1/√{n} = {chance(n):.2f}')
    for n in counts
    if n > 1
  )


def _agreement(groups: Groups) -> LayerFigure:
  return LayerFigure(
    'agreement',
    'Agreement of heads and of residuals',
    'S_H: mean over pairs of experts of the positive part of the cosine of their heads. '
    'c_R: mean cosine of the residuals to their common direction; residuals at right '
    'angles already give the dotted value.',
    (
      Measure('S_H (heads)', field('S_H'), HEAD),
      Measure('c_R (residuals)', field('c_R'), RESIDUAL),
    ),
    'cosine',
    f'recorded by a merge with resmerge; else it {DIAGNOSE}',
    of='matrices',
    references=_right_angles(groups, 'c_R'),
  )


def _retention(groups: Groups) -> LayerFigure:
  return LayerFigure(
    'retention',
    'What averaging keeps of heads and of residuals',
    'Length of the mean over the mean length. 1: all point the same way. Below the '
    'dotted value they work against each other.',
    (
      Measure('Ret_H (heads)', field('retention_head'), HEAD),
      Measure('Ret_R (residuals)', field('retention_residual'), RESIDUAL),
    ),
    'share of length kept',
    DIAGNOSE,
    of='matrices',
    references=_right_angles(groups, 'Ret'),
  )


_COSINES_BY_LAYER = LayerFigure(
  'cosines_by_layer',
  'Cosines between experts, by layer',
  'Mean cosine between two experts: of their heads, their residuals, their '
  'whole updates. 0 is a right angle; below it they undo each other.',
  (
    Measure('heads', field('cos_head_pairs'), HEAD),
    Measure('residuals', field('cos_residual_pairs'), RESIDUAL),
    Measure('whole updates', field('cos_delta_pairs'), WHOLE),
  ),
  'cosine',
  DIAGNOSE,
  of='matrices and pairs of experts',
)
_SIGNS = LayerFigure(
  'sign_conflict',
  'Entries on which experts disagree in sign',
  'Of the entries that two or more experts change, the share that two of them move in '
  'opposite directions. Independent signs of two experts give 50 %, of three 75 %.',
  (Measure('different signs', field('sign_conflict', 100.0)),),
  '% of entries changed twice',
  DIAGNOSE,
  of='matrices',
)


@dataclasses.dataclass(frozen=True)
class _Pair:
  """Of two experts of a group the spreads of heads and residuals over a family."""

  group: str
  family: str
  names: tuple[str, str]
  label: str
  spreads: tuple[Spread, ...]

  @property
  def size(self) -> float:
    return max(abs(spread.five[2]) for spread in self.spreads)


def _cosines(groups: Groups) -> Figure | Missing:
  """Boxes over matrices, for each pair of experts: heads against residuals."""
  title = 'Cosines between experts, by pair'
  families = [
    pairs
    for group in groups
    for family in FAMILY_NAMES
    if (pairs := _pairs(group, family))
  ]
  if not families:
    return Missing(title, f'needs two experts or more; {DIAGNOSE}')
  every = [
    (pair, spread) for pairs in families for pair in pairs for spread in pair.spreads
  ]
  held = tuple(value for _, spread in every for value in spread.five)
  panels = []
  for pairs in families:
    shown = sorted(pairs, key=lambda pair: pair.size, reverse=True)[:MOST_PAIRS]
    name = FAMILY_NAMES[pairs[0].family]
    name = name if len(groups) == 1 else f'{pairs[0].group}: {name}'
    if len(shown) < len(pairs):
      name += f', {len(shown)} of {len(pairs)} pairs'
    rows = tuple((pair.label, pair.spreads) for pair in pairs if pair in shown)
    panels.append(Boxes(name, rows, 'cosine', held))
  caption = (
    'Each box holds the middle half of the matrices, its bar is the median; the line '
    'reaches from the smallest to the largest. Filled: heads. Open: residuals.'
  )
  if any(len(pairs) > MOST_PAIRS for pairs in families):
    caption += (
      f' Of more than {MOST_PAIRS} pairs those with the largest medians are drawn.'
    )
  header = ('group', 'family', 'expert', 'and', 'of')
  table = Table(
    (*header, 'smallest', 'lower quartile', 'median', 'upper quartile', 'largest'),
    tuple((p.group, p.family, *p.names, s.key.label, *s.five) for p, s in every),
  )
  return Figure('cosines', title, caption, (_HEAD, _RESIDUAL), tuple(panels), table)


def _pairs(group: GroupDiagnosis, family: str) -> list[_Pair]:
  records = [r for r in group.records if r.get('family') == family and is_matrix(r)]
  labels = itertools.combinations(brief(group.expert_ids), 2)
  names = itertools.combinations(group.expert_ids, 2)
  found = []
  for i, (pair, label) in enumerate(zip(names, labels, strict=True)):
    spreads = []
    for name, key in _FIELDS:
      lists = [record.get(name) or [] for record in records]
      held = [v for pairs in lists for v in numbers(pairs[i : i + 1])]
      if held:
        spreads.append(Spread(key, five(held)))
    if spreads:
      found.append(_Pair(group.label, family, pair, ' · '.join(label), tuple(spreads)))
  return found


def _shared(groups: Groups) -> Figure | Missing:
  """Changed entries of every expert: alone, or with another (RAM's counts)."""
  title = 'Changed entries that experts share'
  keys = (Key('another expert changes them too', 1, kind='block'),
          Key('this expert alone changes them', 0, kind='block', strength=0.45))  # fmt: skip
  panels, rows = [], []
  for group in groups:
    bars = []
    short = brief(group.expert_ids)
    for i, name in enumerate(group.expert_ids):
      changed, shared = (_total(group, key, i) for key in ('changed', 'shared'))
      if not changed or shared is None:
        continue
      both = 100 * shared / changed
      bars.append(
        (
          f'{short[i]}: {changed:,} changed',
          tuple(zip(keys, (both, 100 - both), strict=True)),
        )
      )
      rows.append((group.label, name, changed, shared, both))
    if bars:
      where = 'All tensors' if len(groups) == 1 else group.label
      panels.append(Bars(where, tuple(bars), '% of the expert’s changed entries'))
  if not panels:
    return Missing(title, f'needs two experts or more; {DIAGNOSE}')
  return Figure(
    'shared', title,
    'Entries that an expert moves by more than the threshold of RAM’s counts, and how '
    'many of them another expert moves as well.',
    keys, tuple(panels),
    Table(('group', 'expert', 'changed', 'shared', 'shared, %'), tuple(rows)),
  )  # fmt: skip


def _total(group: GroupDiagnosis, name: str, expert: int) -> int | None:
  lists = [record[name] for record in group.records if record.get(name)]
  held = [int(v) for one in lists for v in numbers(one[expert : expert + 1])]
  return sum(held) if held else None
