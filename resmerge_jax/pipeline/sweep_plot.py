"""The picture of a sweep; matplotlib is loaded when needed."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

# Okabe and Ito's colours, which colour-blind readers tell apart; markers differ too.
_STYLES = (
  ('#0072B2', 'o'),
  ('#D55E00', 's'),
  ('#009E73', '^'),
  ('#CC79A7', 'D'),
  ('#56B4E9', 'v'),
  ('#E69F00', 'P'),
  ('#000000', 'X'),
)
_TITLES = {
  'update_norm': 'update norm (Frobenius)',
  'rounding_loss': 'lost by rounding, relative',
  'mean alpha_R': r'mean $\alpha_R$',
  'mean beta': r'mean $\beta$',
  'mean c_R': 'mean $c_R$',
  'mean S_H': 'mean $S_H$',
  'mean norm_A': r'mean $\|A\|$ (backbone)',
  'mean norm_C': r'mean $\|C\|$ (heads)',
}
_PANELS, _TICKS = 9, 9


def plot_settings(
  rows: Sequence[dict[str, Any]], fields: Sequence[str], path: pathlib.Path
) -> None:
  """Writes a PNG with a panel for each number that the settings changed.

  Lines over the first field of numbers where the settings are a product of lists, and
  few lines are needed; else a dot for each setting.
  """
  import matplotlib.figure  # no pyplot: it would look for a display

  shown = _changed(rows) or ['update_norm']
  lines = _lines(rows, fields)
  n_columns = min(3, len(shown))
  n_rows = -(-len(shown) // n_columns)
  height = 2.8 if lines else 1.2 + 0.22 * len(rows)
  size = (1.5 + 3.4 * n_columns, 0.8 + height * n_rows)
  figure = matplotlib.figure.Figure(figsize=size, layout='constrained')
  panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=not lines).flat
  for key, axes in itertools.zip_longest(shown, panels):
    if key is None:
      axes.set_visible(False)
      continue
    axes.set_title(_TITLES.get(key, key), fontsize=10)
    axes.grid(alpha=0.3)
    if lines:
      _draw_lines(axes, lines, key)
      axes.set_xlabel(lines[0])
      axes.set_xticks(_ticks({row[lines[0]] for row in rows}))
    else:
      axes.plot([row.get(key) for row in rows], range(len(rows)), 'o', color='#0072B2')
      axes.set_yticks(range(len(rows)), [row['setting'] for row in rows], fontsize=8)
      axes.margins(x=0.12)
  if not lines:
    next(iter(figure.axes)).invert_yaxis()
  elif len(lines[1]) > 1:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, fontsize=8)
  figure.savefig(path, dpi=120)


def _changed(rows: Sequence[dict[str, Any]]) -> list[str]:
  """Numbers that differ between settings, those with a title first."""
  means = [key for row in rows for key in row if key.startswith('mean ')]
  keys = [*_TITLES, *dict.fromkeys(key for key in means if key not in _TITLES)]
  differing = [key for key in keys if len({row.get(key) for row in rows}) > 1]
  return differing[:_PANELS]


Lines = tuple[str, dict[str, list[dict[str, Any]]]]


def _lines(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> Lines | None:
  """The field along x, and the rows of each line by its label; None if it is no product."""
  values = {field: {repr(row[field]) for row in rows} for field in fields}
  n_rows = 1
  for found in values.values():
    n_rows *= len(found)
  numeric = [
    field
    for field in fields
    if all(isinstance(row[field], int | float) for row in rows)
    and not any(isinstance(row[field], bool) for row in rows)
  ]
  if n_rows != len(rows) or not numeric:
    return None
  along = numeric[0]
  lines: dict[str, list[dict[str, Any]]] = {}
  for row in sorted(rows, key=lambda row: row[along]):
    others = [f'{field} {row[field]}' for field in fields if field != along]
    lines.setdefault(', '.join(others), []).append(row)
  return (along, lines) if len(lines) <= len(_STYLES) else None


def _ticks(values: set[float]) -> list[float]:
  """The values themselves; of many, some with equal numbers of others between them."""
  ordered = sorted(values)
  return ordered[:: -(-len(ordered) // _TICKS)]


def _draw_lines(axes: Any, lines: Lines, key: str) -> None:
  along, by_label = lines
  for (label, rows), (colour, marker) in zip(by_label.items(), _STYLES, strict=False):
    x, y = [row[along] for row in rows], [row.get(key) for row in rows]
    axes.plot(x, y, color=colour, marker=marker, markersize=5, label=label)
