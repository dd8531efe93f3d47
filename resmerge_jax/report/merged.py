"""What a merge did, layer by layer."""

import collections
from collections.abc import Sequence

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report import layers
from resmerge_jax.report.chart import COLOURS, HEAD, RESIDUAL, WHOLE, Key
from resmerge_jax.report.figure import Figure, Missing, Table
from resmerge_jax.report.layers import LayerFigure, Measure
from resmerge_jax.report.rows import Bars
from resmerge_jax.report.values import FAMILY_NAMES, field, is_matrix, ratio

Groups = Sequence[GroupDiagnosis]
RECORDED = 'recorded by a merge: tools.diagnose --merged=MERGED'
RESMERGE = 'recorded by a merge with resmerge: tools.diagnose --merged=MERGED'


def figures(groups: Groups) -> list[Figure | Missing]:
  return [
    layers.draw(_STRENGTH, groups),
    _branches(groups),
    *(layers.draw(spec, groups) for spec in (_NORMS, _DISTANCE, _ROUNDING)),
  ]


_STRENGTH = LayerFigure(
  'alpha_beta',
  'Strength of the backbone',
  'alpha_R scales the common direction of the residuals against their mean length; beta '
  'is its exponent, smaller where residuals agree (Eq. 9 and 11).',
  (Measure('alpha_R', field('alpha_R')), Measure('beta', field('beta'), 2)),
  'alpha_R, beta (no unit)',
  RESMERGE,
  of='matrices',
)
_NORMS = LayerFigure(
  'norms',
  'Length of what was added to the base',
  'The backbone A (residuals), the correction C (heads), and the whole update as it '
  'was before rounding.',
  (
    Measure('whole update', field('update_norm'), WHOLE),
    Measure('backbone ‖A‖', field('norm_A'), RESIDUAL),
    Measure('correction ‖C‖', field('norm_C'), HEAD),
  ),
  'Frobenius norm',
  RECORDED,
  of='matrices',
)
_DISTANCE = LayerFigure(
  'distance',
  'Distance of the merged model to each expert',
  '‖W − Wᵢ‖ / ‖Dᵢ‖: 0 is the expert itself, 1 is as far from it as the base is.',
  (Measure('distance', ratio('distance', 'delta_norm')),),
  'in lengths of the expert’s update',
  'needs all weights: tools.diagnose with --merged, --base and --experts',
  by_expert=True,
  references=((1.0, 'as far as the base'),),
)
_ROUNDING = LayerFigure(
  'rounding_loss',
  'What rounding to the output dtype lost',
  '‖round(W₀ + U) − W₀ − U‖ / ‖U‖. 100 %: the error is as long as the update.',
  (Measure('lost', field('rounding_loss', 100.0)),),
  '% of ‖U‖',
  RECORDED,
  of='matrices',
)


def _branches(groups: Groups) -> Figure | Missing:
  """Which branch of the method matrices took, by family."""
  title = 'Branches that the method took'
  counts = {
    (g, family): collections.Counter(
      record['branch']
      for record in group.records
      if record.get('branch') and record.get('family') == family and is_matrix(record)
    )
    for g, group in enumerate(groups)
    for family in FAMILY_NAMES
  }
  names = sorted({name for found in counts.values() for name in found})
  if not names:
    return Missing(title, RECORDED)
  keys = {n: Key(n, i % COLOURS, kind='block') for i, n in enumerate(names)}
  panels: list[Bars] = []
  rows: list[tuple[str | int, ...]] = []
  for g, group in enumerate(groups):
    bars = []
    for family, where in FAMILY_NAMES.items():
      found = counts[g, family]
      total = found.total()
      if total:
        said = ', '.join(f'{found[name]:,} {name}' for name in names if found[name])
        shares = tuple((keys[name], 100 * found[name] / total) for name in names)
        bars.append((f'{where}: {said}', shares))
        rows.append((group.label, family, *(found[name] for name in names)))
    if bars:
      title_of = 'Matrices by family' if len(groups) == 1 else group.label
      panels.append(Bars(title_of, tuple(bars), '% of matrices'))
  return Figure(
    'branches', title,
    'ResMerge: consensus is the backbone of the paper; mean is the fallback of the '
    'release where residuals agree no more than by chance; zero leaves the backbone out.'
    if {'consensus', 'mean'} & set(names)
    else 'The method’s own names; docs/methods.md explains them.',
    tuple(keys.values()), tuple(panels),
    Table(('group', 'family', *names), tuple(rows)),
  )  # fmt: skip
