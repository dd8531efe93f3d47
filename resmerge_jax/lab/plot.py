"""Pictures of training and of methods; matplotlib is loaded when needed."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


def plot_training(records: Mapping[str, Mapping[str, Any]], path: pathlib.Path) -> None:
  """Writes a PNG: the base's accuracy, the reward of GRPO, the loss of supervision."""
  import matplotlib.figure  # no pyplot: it would look for a display

  base = records['base']
  panels = {'rl': ('reward', 'reward of drawn answers'), 'sft': ('loss', 'loss')}
  shown = [
    kind for kind in panels if any(r['kind'].startswith(kind) for r in records.values())
  ]
  figure = matplotlib.figure.Figure(
    figsize=(4.5 * (1 + len(shown)), 3.8), layout='constrained'
  )
  axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
  checks = base['checks']
  for task in [name for name in checks[0] if name not in ('step', 'phase')]:
    axes[0].plot(
      [check['step'] for check in checks], [check[task] for check in checks], label=task
    )
  axes[0].axvline(base['clean_steps'], color='grey', linewidth=1, linestyle='--')
  axes[0].axhspan(*base['made_by']['base']['band'], color='grey', alpha=0.15)
  _dress(axes[0], 'base (dashed: two conventions from here)', 'greedy accuracy')
  axes[0].set_ylim(0, 1)
  for kind, panel in zip(shown, axes[1:], strict=True):
    field, label = panels[kind]
    for name, record in records.items():
      if record['kind'].startswith(kind):
        curve = record['curve']
        panel.plot([p['step'] for p in curve], [p[field] for p in curve], label=name)
    _dress(panel, {'rl': 'experts by GRPO', 'sft': 'supervised experts'}[kind], label)
  figure.savefig(path, dpi=120)


def plot_methods(rows: Sequence[tuple[str, ...]], path: pathlib.Path) -> None:
  """Writes a PNG: the mean accuracy of every model of the methods table, as bars."""
  import matplotlib.figure

  names = [row[0] for row in rows[1:]]
  means = [float(row[rows[0].index('mean')]) for row in rows[1:]]
  figure = matplotlib.figure.Figure(
    figsize=(7, 1 + 0.25 * len(names)), layout='constrained'
  )
  axes = figure.subplots()
  tuned = [',' in name for name in names]
  axes.barh(names, means, color=['#D55E00' if t else '#0072B2' for t in tuned])
  axes.invert_yaxis()
  axes.set_xlim(0, 100)
  axes.set_xlabel('mean accuracy on test prompts (%); orange: length tuned')
  axes.grid(axis='x', alpha=0.3)
  figure.savefig(path, dpi=120)


def _dress(axes: Any, title: str, y_label: str) -> None:
  axes.set_title(title)
  axes.set_xlabel('step')
  axes.set_ylabel(y_label)
  axes.grid(alpha=0.3)
  axes.legend()
