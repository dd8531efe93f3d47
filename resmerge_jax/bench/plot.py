"""The picture of a sweep. The only module that uses matplotlib, loaded when needed."""

import pathlib
from typing import Any

from resmerge_jax.bench.curves import Curve, Curves
from resmerge_jax.bench.ratios import fit

# Okabe and Ito's colours, which colour-blind readers tell apart; markers differ too.
_STYLES = (
  ('#0072B2', 'o'),
  ('#D55E00', 's'),
  ('#009E73', '^'),
  ('#CC79A7', 'D'),
)
_LABELLED = ('ours', 'mergekit', 'floor', 'predicted')  # each keeps its style


def plot_sweep(curves: Curves, path: pathlib.Path) -> None:
  """Writes a PNG: time on the left, memory on the right, a line fitted to each curve."""
  import matplotlib.figure  # no pyplot: it would look for a display

  figure = matplotlib.figure.Figure(figsize=(9, 3.8), layout='constrained')
  left, right = figure.subplots(1, 2)
  figure.suptitle(curves.title)
  _panel(left, curves.time, curves.x_label, 'time of the whole process (s)')
  _panel(right, curves.memory, curves.x_label, 'peak anonymous memory (GB)')
  figure.savefig(path, dpi=150)


def _panel(axes: Any, found: tuple[Curve, ...], x_label: str, y_label: str) -> None:
  for curve in found:
    colour, marker = _STYLES[_LABELLED.index(curve.label)]
    errors = None
    if curve.low:
      below = [y - low for y, low in zip(curve.y, curve.low, strict=True)]
      above = [high - y for y, high in zip(curve.y, curve.high, strict=True)]
      errors = [below, above]
    axes.errorbar(
      curve.x,
      curve.y,
      yerr=errors,
      color=colour,
      marker=marker,
      linestyle='none',
      capsize=3,
      label=curve.label,
    )
    line = fit(curve.x, curve.y)
    ends = [0.0, max(curve.x)]
    heights = [line.intercept + line.slope * x for x in ends]
    axes.plot(ends, heights, color=colour, linewidth=1, linestyle='--')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.set_xlim(left=0)
  axes.set_ylim(bottom=0)
  axes.grid(alpha=0.3)
  axes.legend(title='dashed: linear fit')
