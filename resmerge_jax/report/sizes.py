"""How large the updates are beside the weights, and how much of them is zero."""

from collections.abc import Sequence

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report import layers
from resmerge_jax.report.figure import Figure, Missing
from resmerge_jax.report.layers import LayerFigure, Measure
from resmerge_jax.report.spectral import DIAGNOSE
from resmerge_jax.report.values import field


def figures(groups: Sequence[GroupDiagnosis]) -> list[Figure | Missing]:
  return [layers.draw(spec, groups) for spec in _SPECS]


_SPECS = (
  LayerFigure(
    'relative_norm',
    'Length of the updates beside the weights',
    '‖D‖ / ‖W₀‖: how far training moved a matrix, in percent of its own length.',
    (Measure('update', field('relative_norm', 100.0)),),
    '% of ‖W₀‖',
    DIAGNOSE,
    by_expert=True,
  ),
  LayerFigure(
    'zero_fraction',
    'Entries that training left unchanged',
    'The share of entries that are exactly those of the base. Weights are compared as '
    'they are stored: a change too small for the stored dtype is none.',
    (Measure('unchanged', field('zero_fraction', 100.0)),),
    '% of entries',
    'counted by every merge, and by tools.diagnose',
    by_expert=True,
  ),
  LayerFigure(
    'below_step',
    'Changes smaller than a step of the output dtype',
    'Of the changed entries, the share that moves by less than the distance to the next '
    'number that the output dtype can hold. Scaled down by a merge, such changes are '
    'the first that rounding undoes.',
    (Measure('below a step', field('below_step', 100.0)),),
    '% of changed entries',
    DIAGNOSE,
    by_expert=True,
  ),
)
