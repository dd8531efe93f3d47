"""Results as text to read."""

from collections.abc import Sequence

from resmerge_jax.bench import ratios
from resmerge_jax.bench.cases import Sweep
from resmerge_jax.bench.curves import Curves
from resmerge_jax.bench.ratios import Spread
from resmerge_jax.bench.rivals import OURS
from resmerge_jax.bench.rounds import Result
from resmerge_jax.sizes import format_size

WHAT = {
  'floor': 'read every input byte, write and fsync the output bytes',
  'import_jax': "python -c 'import jax'",
  'mergekit': 'plain task arithmetic',
  'full_svd': 'exact ResMerge by numpy.linalg.svd',
  'ours_first': 'ResMerge, empty compilation cache',
  'ours': 'ResMerge, filled compilation cache',
}
_DISTURBED = 0.25  # cores; the kernel's own work for the processes is less
# What the manifest's names mean, and the two phases around what it times.
PHASES = {
  'startup': 'start of Python, imports, flags',
  'read_wait': 'stall: waiting for input',
  'compile_wait': 'stall: waiting for a compiled program',
  'compute_wait': 'stall: waiting for the device',
  'finish_wait': 'stall: waiting for results, checks and writes',
  'read': 'busy reading',
  'compile': 'busy compiling',
  'compute': 'busy computing',
  'write': 'busy writing',
  'other': 'planning, dispatch, records: merge() less its stalls',
  'until_commit': 'all of merge() up to the commit',
  'commit': 'fsync, side files, rename, exit',
}


def describe(result: Result) -> list[str]:
  """Lines: the table of processes, ratios, breakdown of ours, memory, notes."""
  rounds = max(sample.round for sample in result.samples)
  lines = [
    f'{result.case}, {result.case.model.n_parameters:,} parameters; '
    f'{format_size(result.bytes_read)} read, '
    f'{format_size(result.bytes_written)} written; '
    f'{rounds} round{"s" * (rounds > 1)} in turn',
    '',
    *_processes(result),
    '',
    'ours against the others: median (smallest - largest) of the rounds',
    *aligned(
      [
        (c.label, f'{_spread(c.spread)} {"s" if c.unit == "s" else "times"}')
        for c in ratios.comparisons(result)
      ]
    ),
    '',
    *_breakdown(result),
    '',
    *_memory(result),
  ]
  lines += [f'{name}: {why}' for name, why in result.missing.items()]
  return [*lines, *(f'note: {note}' for note in (*result.notes, *_disturbed(result)))]


def _processes(result: Result) -> list[str]:
  rows: list[tuple[str, ...]] = [
    ('process', 'seconds', 'of ours', 'cpu s', 'anonymous', 'resident', '')
  ]
  for name in ratios.names(result):
    what = WHAT[name]
    if name == 'full_svd' and result.svd_layers < result.case.layers:
      what += f', {result.svd_layers} of {result.case.layers} layers'
    rows.append(
      (
        name,
        _spread(ratios.seconds(result, name)),
        f'{ratios.to_ours(result, name).median:.2f}x',
        _seconds(ratios.cpu(result, name).median),
        _size(ratios.peak(result, name, 'anonymous')),
        _size(ratios.peak(result, name, 'resident')),
        what,
      )
    )
  return aligned(rows)


def _breakdown(result: Result) -> list[str]:
  """Where the time of ours goes, medians; phases that other processes tell."""
  told = next(s.details for s in result.samples if s.name == 'ours')
  sizes = ('bytes_read', 'bytes_written', 'predicted_peak')
  rows: list[tuple[str, ...]] = [('seconds of ours (medians)', *OURS, '')]
  for key in (key for key in told if key not in sizes):
    values = (ratios.detail(result, name, key) for name in OURS)
    rows.append((key, *map(_seconds, values), PHASES.get(key, '')))
  whole = (ratios.seconds(result, name).median for name in OURS)
  rows.append(('whole process', *map(_seconds, whole), ''))
  lines = aligned(rows)
  for name, keys in (
    ('floor', ('read', 'write', 'sync')),
    ('full_svd', ('svd', 'total')),
  ):
    parts = [(key, ratios.detail(result, name, key)) for key in keys]
    if all(value is not None for _, value in parts):
      lines.append(
        f'  {name}: ' + ', '.join(f'{key} {_seconds(v)} s' for key, v in parts)
      )
  return lines


def _memory(result: Result) -> list[str]:
  moved = sum(
    ratios.detail(result, 'ours', key) or 0 for key in ('bytes_read', 'bytes_written')
  )
  whole = ratios.seconds(result, 'ours').median
  inner = ratios.detail(result, 'ours', 'until_commit') or whole
  lines = [
    f'ours moves {format_size(moved)}: {moved / whole / 1e9:.2f} GB/s over the whole '
    f'process, {moved / inner / 1e9:.2f} GB/s until the commit'
  ]
  predicted = ratios.detail(result, 'ours', 'predicted_peak')
  anonymous = ratios.peak(result, 'ours', 'anonymous')
  if predicted and anonymous:
    lines.append(
      f'ours peaks at {format_size(anonymous)} of anonymous memory, predicted '
      f'{format_size(predicted)}: off by {100 * (anonymous / predicted - 1):+.0f} %'
    )
  return lines


def _disturbed(result: Result) -> list[str]:
  others = ratios.busy_with_others(result)
  if others is None or others < _DISTURBED:
    return []
  return [
    f'other processes kept {others:.1f} cores busy meanwhile: times are too long, and '
    'by different factors; measure again on an idle machine'
  ]


def describe_sweep(
  sweep: Sweep, results: Sequence[Result], curves: Curves
) -> list[str]:
  """The sweep as a table, and the lines through time and memory."""
  heads = (sweep.key, 'parameters', *(f'{c.label}, s' for c in curves.time))
  rows = [(*heads, *(f'{c.label}, GB' for c in curves.memory))]
  for i, (value, result) in enumerate(zip(sweep.values, results, strict=True)):
    times = (f'{curve.y[i]:.2f}' for curve in curves.time)
    sizes = (f'{curve.y[i]:.3f}' for curve in curves.memory)
    rows.append((str(value), f'{result.case.model.n_parameters:,}', *times, *sizes))
  lines = ['', f'sweep over {sweep.key}', *aligned(rows)]
  for unit, curve in (('s', curves.time[0]), ('GB', curves.memory[0])):
    line = ratios.fit(curve.x, curve.y)
    lines.append(
      f'  {curve.label}: {line.intercept:.3g} {unit} + {line.slope:.3g} {unit} per '
      f'{curves.x_unit}, R2 {line.r2:.4f}'
    )
  return lines


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
  """Columns of equal width: text left, numbers right (all but first and last)."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  last = len(widths) - 1
  return [
    '  '
    + '  '.join(
      text.ljust(w) if i in (0, last) else text.rjust(w)
      for i, (text, w) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def _spread(found: Spread) -> str:
  return f'{found.median:.2f} ({found.low:.2f} - {found.high:.2f})'


def _seconds(value: float | None) -> str:
  return '' if value is None else f'{value:.2f}'


def _size(n_bytes: int | None) -> str:
  return 'unknown' if n_bytes is None else format_size(n_bytes)
