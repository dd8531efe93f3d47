"""Pictures of training and of comparisons; matplotlib is loaded when needed."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[tuple[str, ...]]  # a head, and the rest
_BLUE, _ORANGE = '#0072B2', '#D55E00'
_COLORS = ('#BBBBBB', _ORANGE, _BLUE, '#222222')


def plot_training(records: Mapping[str, Mapping[str, Any]], path: pathlib.Path) -> None:
  """Writes a PNG: the base's accuracy, the reward of GRPO, the loss of supervision."""
  import matplotlib.figure  # no pyplot: it would look for a display

  base = records['base']
  panels = {'rl': ('reward', 'reward of drawn answers'), 'sft': ('loss', 'loss')}
  shown = [
    kind for kind in panels if any(r['kind'].startswith(kind) for r in records.values())
  ]
  trained = 'checks' in base  # here, and not elsewhere
  figure = matplotlib.figure.Figure(
    figsize=(4.5 * (trained + len(shown)), 3.8), layout='constrained'
  )
  axes = figure.subplots(1, trained + len(shown), squeeze=False)[0]
  if trained:
    _plot_base(base, axes[0])
  for kind, panel in zip(shown, axes[trained:], strict=True):
    field, label = panels[kind]
    for name, record in records.items():
      if record['kind'].startswith(kind):
        curve = record['curve']
        panel.plot([p['step'] for p in curve], [p[field] for p in curve], label=name)
    _dress(panel, {'rl': 'experts by GRPO', 'sft': 'supervised experts'}[kind], label)
  figure.savefig(path, dpi=120)


def _plot_base(base: Mapping[str, Any], axes: Any) -> None:
  checks = base['checks']
  for task in [name for name in checks[0] if name not in ('step', 'phase')]:
    axes.plot(
      [check['step'] for check in checks], [check[task] for check in checks], label=task
    )
  axes.axvline(base['clean_steps'], color='grey', linewidth=1, linestyle='--')
  axes.axhspan(*base['made_by']['base']['band'], color='grey', alpha=0.15)
  _dress(axes, 'base (dashed: two conventions from here)', 'greedy accuracy')
  axes.set_ylim(0, 1)


def plot_models(rows: Rows, path: pathlib.Path) -> None:
  """Writes a PNG: the accuracy of every model, on each task and their mean."""
  names, groups = [row[0] for row in rows[1:]], rows[0][1:]
  figure, axes = _figure(2 + len(names), 3.8)
  width = 0.8 / len(groups)
  for i, group in enumerate(groups):
    places = [n + width * (i - (len(groups) - 1) / 2) for n in range(len(names))]
    color = '#222222' if group == 'mean' else None
    axes.bar(places, _numbers(rows, group), 0.9 * width, color=color, label=group)
  axes.set_xticks(range(len(names)), names, rotation=30, ha='right')
  axes.set_ylim(0, 100)
  axes.set_ylabel('right answers to test prompts (%)')
  axes.legend(ncols=len(groups), loc='lower center', bbox_to_anchor=(0.5, 1))
  figure.savefig(path, dpi=120)


def plot_methods(rows: Rows, tuned: Rows, path: pathlib.Path) -> None:
  """Writes a PNG: the mean accuracy of every method, as it is and with length tuned."""
  names, means = _column(rows, 'method'), _numbers(rows, 'mean')
  figure, axes = _figure(7, 1 + 0.25 * len(names))
  places = range(len(names))
  axes.barh(places, means, height=0.7, color=_BLUE, label='as it is')
  axes.plot(_numbers(tuned, 'mean'), places, 'D', color=_ORANGE, label='length tuned')
  axes.set_yticks(places, names)
  axes.set_xlim(0, 100)
  axes.set_xlabel('mean accuracy on test prompts (%)')
  axes.grid(axis='x', alpha=0.3)
  axes.set_ylim(len(names) - 0.4, -0.6)
  axes.legend(ncols=2, loc='lower center', bbox_to_anchor=(0.5, 1))
  figure.savefig(path, dpi=120)


def plot_parts(rows: Rows, path: pathlib.Path) -> None:
  """Writes a PNG in the manner of the paper's Figure 1: an expert beside its parts."""
  names = _column(rows, 'expert')
  figure, axes = _figure(2 + 0.9 * len(names), 3.6)
  shown = ('base', 'head', 'residual', 'expert')
  for i, (part, color) in enumerate(zip(shown, _COLORS, strict=True)):
    # 'expert' is the name's column too.
    index = len(rows[0]) - 1 - rows[0][::-1].index(part)
    heights = [float(row[index]) for row in rows[1:]]
    axes.bar(
      [n + 0.2 * (i - 1.5) for n in range(len(names))],
      heights,
      width=0.18,
      color=color,
      label=part,
    )
  axes.set_xticks(range(len(names)), names, rotation=30, ha='right')
  axes.set_ylim(0, 100)
  axes.set_ylabel('accuracy on its own task (%)')
  axes.legend(ncols=4, loc='lower center', bbox_to_anchor=(0.5, 1))
  figure.savefig(path, dpi=120)


def plot_curves(rows: Rows, path: pathlib.Path) -> None:
  """Writes a PNG in the manner of the paper's Figure 3: accuracy by k, and by rho."""
  curves = dict.fromkeys(_column(rows, 'curve'))
  panels = {'head rank': 'k', 'budget': 'rho'}
  figure, both = _figure(9, 3.4, len(panels))
  means = [float(row[rows[0].index('mean')]) for row in rows[1:]]
  for axes, (begin, label) in zip(both, panels.items(), strict=True):
    for curve in [name for name in curves if name.startswith(begin)]:
      found = [
        (float(row[1].split(' = ')[1]), mean)
        for row, mean in zip(rows[1:], means, strict=True)
        if row[0] == curve
      ]
      axes.plot(*zip(*found, strict=True), 'o-', label=curve)
    axes.set_xlabel(label)
    axes.set_ylim(min(means) - 5, max(means) + 5)
    axes.set_ylabel('mean accuracy (%)')
    axes.grid(alpha=0.3)
    axes.legend()
  figure.savefig(path, dpi=120)


def plot_layers(rows: Rows, path: pathlib.Path) -> None:
  """Writes a PNG in the manner of the paper's Figures 4 and 5: by layer, the share of
  energy in the head, and how far heads and residuals of the experts agree.
  """
  layers = [int(layer) for layer in _column(rows, 'layer')]
  figure, (energy, agreement) = _figure(9, 3.4, 2)
  energy.plot(layers, _numbers(rows, 'head share'), 'o-', color=_BLUE)
  energy.set_ylabel("head's share of energy")
  for name, color, label in (('S_H', _ORANGE, 'heads'), ('s_R', _BLUE, 'residuals')):
    agreement.plot(layers, _numbers(rows, name), 'o-', color=color, label=label)
  agreement.set_ylabel('agreement of pairs (S_H, s_R)')
  agreement.legend()
  for axes in (energy, agreement):
    axes.set_xlabel('layer')
    axes.set_xticks(layers)
    axes.set_ylim(min(0, *axes.get_ylim()), 1)
    axes.grid(alpha=0.3)
  figure.savefig(path, dpi=120)


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(1, panels)


def _column(rows: Rows, name: str) -> list[str]:
  index = rows[0].index(name)
  return [row[index] for row in rows[1:]]


def _numbers(rows: Rows, name: str) -> list[float]:
  return [float(value) for value in _column(rows, name)]


def _dress(axes: Any, title: str, y_label: str) -> None:
  axes.set_title(title)
  axes.set_xlabel('step')
  axes.set_ylabel(y_label)
  axes.grid(alpha=0.3)
  axes.legend()
