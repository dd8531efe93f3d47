"""All methods on groups of several seeds: measured, and written as tables and pictures."""

import functools
import json
import pathlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from resmerge_jax.lab import probes
from resmerge_jax.lab.answers import prompts_of
from resmerge_jax.lab.evaluate import check_complete
from resmerge_jax.lab.group import RECORD, model_names
from resmerge_jax.lab.measurements import Measurements, to_json
from resmerge_jax.lab.merges import (
  Loaded,
  Precision,
  Right,
  best_length,
  lengthened,
  load_group,
  merged,
  score_merge,
)
from resmerge_jax.lab.method_tables import Table, comparison_tables
from resmerge_jax.lab.plot import plot_curves, plot_layers, plot_methods, plot_parts
from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.scores import Measured
from resmerge_jax.lab.tables import as_csv, markdown
from resmerge_jax.lab.variants import PAPER, Entry
from resmerge_jax.version import __version__

Say = Callable[[str], None]


def compare_groups(
  recipe: GroupRecipe,
  kinds: Sequence[str],
  folders: Sequence[pathlib.Path],
  entries: Mapping[str, Entry],
  precision: Precision,
  output: pathlib.Path,
  say: Say,
) -> str:
  """The tables of the groups in `folders`, one per seed, as Markdown.

  Experts of `kinds` are merged. Every merge is scored as it is, and with its update's
  length chosen on training prompts. Writes what `write_comparison` says.

  Raises:
    InputError: a model of a group is missing.
  """
  for folder in folders:
    check_complete(recipe, folder)
  seeds = [
    measure_group(recipe, kinds, folder, entries, precision, say) for folder in folders
  ]
  return write_comparison(recipe, kinds, seeds, entries, output)


def measure_group(
  recipe: GroupRecipe,
  kinds: Sequence[str],
  folder: pathlib.Path,
  entries: Mapping[str, Entry],
  precision: Precision,
  say: Say,
) -> Measured:
  """Everything that is measured on one group; says the CPU seconds of each phase.

  What an earlier run has measured is read from its journal in `folder`.
  """
  clock = _Clock()
  journal = Measurements(folder, _about(recipe, folder, precision))
  if journal:
    say(f'{folder.name}: {len(journal)} things were measured before: {journal.file}')
  every = load_group(recipe, folder, precision, list(recipe.experts))
  chosen = {n: every.experts[n] for n, (k, _) in recipe.experts.items() if k in kinds}
  group, merged_kinds = every._replace(experts=chosen), list(kinds)
  scores: dict[str, Right] = {
    name: journal.measured(['model', name], functools.partial(score_merge, group, x))
    for name, x in {'base': group.base, **every.experts}.items()
  }
  clock.lap('experts')
  tuned: dict[str, Right] = {}
  factors: dict[str, float] = {}
  for name, entry in entries.items():
    found = journal.measured(
      ['merge', merged_kinds, entry.method, entry.post],
      functools.partial(_measure_merge, group, entry, clock),
    )
    scores[name], tuned[name] = found['as it is'], found['tuned']
    factors[name] = found['factor']
    means = [_mean(found[which]) for which in ('as it is', 'tuned')]
    say(
      f'{folder.name}: {name}: {means[0]:.1%}; times {factors[name]:g}: {means[1]:.1%}'
    )
  parts = journal.measured(['parts'], lambda: probes.score_parts(every))
  curves = journal.measured(['curves', merged_kinds], lambda: _curves(group))
  geometry = journal.measured(['geometry', merged_kinds], lambda: _geometry(group))
  clock.lap('parts and curves')
  say(f'{folder.name}: CPU seconds: {clock}')
  return Measured(scores, tuned, factors, parts, curves, *geometry.values())


def _about(
  recipe: GroupRecipe, folder: pathlib.Path, precision: Precision
) -> dict[str, Any]:
  """What decides about all that is measured."""
  made = {n: (folder / n / RECORD).read_bytes() for n in model_names(recipe)}
  asked = [
    [(e.prompt, e.answer) for e in prompts_of(task, count, test).examples]
    for task in recipe.tasks
    for test, count in ((True, recipe.test_prompts), (False, recipe.check_prompts))
  ]
  return {
    'version': __version__,
    'models': {name: zlib.crc32(record) for name, record in made.items()},
    'prompts': zlib.crc32(json.dumps(asked).encode()),
    'lengths': recipe.lengths,
    'precision': precision,
  }


def _measure_merge(group: Loaded, entry: Entry, clock: '_Clock') -> dict[str, Any]:
  """Right answers as it is, and with the length that is best on training prompts."""
  tensors = merged(group, entry).tensors
  clock.lap('merges')
  found: dict[str, Any] = {'as it is': score_merge(group, tensors)}
  factor = found['factor'] = best_length(group, tensors)
  found['tuned'] = (
    found['as it is']
    if factor == 1
    else score_merge(group, lengthened(group, tensors, factor))
  )
  clock.lap('merges answer')
  return found


def _geometry(group: Loaded) -> dict[str, Any]:
  records = merged(group, Entry('', PAPER)).records
  return {'of all': probes.geometry(group, records), 'layers': probes.by_layer(records)}


def _curves(group: Loaded) -> dict[str, dict[str, Right]]:
  return {
    'head rank': probes.score_ranks(group),
    'budget': probes.score_budgets(group, 'agreement'),
    'budget, not gated': probes.score_budgets(group, 'none'),
  }


def _mean(right: Right) -> float:
  return float(np.mean([answers.mean() for answers in right.values()]))


def write_comparison(
  recipe: GroupRecipe,
  kinds: Sequence[str],
  seeds: Sequence[Measured],
  entries: Mapping[str, Entry],
  output: pathlib.Path,
) -> str:
  """Writes the tables as `output`.md and one .csv each, right answers by prompt as
  `output`.json, and pictures: of methods, parts (Figure 1), curves (Figure 3) and
  layers (Figures 4 and 5).
  """
  tables = comparison_tables(recipe, kinds, seeds, entries)
  text = ''.join(f'## {t.title}\n\n{t.text}\n\n{markdown(t.rows)}\n' for t in tables)
  output.with_name(f'{output.name}.md').write_text(text)
  raw = [to_json(found._asdict()) for found in seeds]
  output.with_name(f'{output.name}.json').write_text(json.dumps(raw) + '\n')
  for table in tables:
    output.with_name(f'{output.name}_{table.name}.csv').write_text(as_csv(table.rows))
  _draw({table.name: table for table in tables}, output)
  return text


def _draw(tables: Mapping[str, Table], output: pathlib.Path) -> None:
  def path(name: str) -> pathlib.Path:
    return output.with_name(f'{output.name}_{name}.png')

  plot_methods(tables['methods'].rows, tables['tuned'].rows, path('methods'))
  plot_parts(tables['parts'].rows, path('parts'))
  plot_curves(tables['curves'].rows, path('curves'))
  plot_layers(tables['layers'].rows, path('layers'))


class _Clock:
  """CPU seconds of this process by phase."""

  def __init__(self) -> None:
    self._seconds: dict[str, float] = {}
    self._last = time.process_time()

  def lap(self, phase: str) -> None:
    """What has passed since the last lap was this phase."""
    now = time.process_time()
    self._seconds[phase] = self._seconds.get(phase, 0) + now - self._last
    self._last = now

  def __str__(self) -> str:
    return ', '.join(f'{phase} {s:.0f}' for phase, s in self._seconds.items())
