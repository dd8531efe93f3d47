"""What compiling ahead of time told, as text and as JSON."""

from collections.abc import Callable, Sequence
from typing import Any

from resmerge_jax.checkpoint.summary import table
from resmerge_jax.pipeline.ahead import CYCLES, Ahead, Program, named
from resmerge_jax.pipeline.hlo import WHERE
from resmerge_jax.plan.accelerators import Accelerators
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.sizes import format_size


def describe_ahead(ahead: Ahead, plan: MergePlan) -> list[str]:
  """Lines: one per program, then totals."""
  assert isinstance(plan.devices, Accelerators)
  n_processes = plan.devices.n_processes
  chip, n_chips = ahead.chip, len(ahead.devices)
  settled, at_most = (_solver_steps(ahead, n) for n in CYCLES.values())
  moved = [sum(_moved(p, n) for p in ahead.programs) for n in CYCLES.values()]
  what = 'steps that fit' if ahead.misfits else 'all steps'
  seconds = [ahead.seconds(n) for n in CYCLES.values()]
  heads = ('program', 'steps', 'mesh', 'padded', 'input', 'output', 'peak')
  return [
    '',
    f'{ahead.topology}: {n_chips} chips with {format_size(chip.memory)} each, '
    f'processes: {n_processes}; of one chip in one step:',
    *table(
      [(*heads, 'to links', 'estimate'), *(_row(ahead, p) for p in ahead.programs)]
    ),
    '',
    f'{what}: estimate {_span(seconds, _seconds)} where heads settle after {settled} '
    f'solver steps, or not before the last ({at_most}); to the links of a chip '
    f'{_span(moved, format_size)}',
    f'each process reads {format_size(plan.bytes_read / n_processes)} and writes '
    f'{format_size(plan.bytes_written / n_processes)}, which the estimate leaves out',
    'estimates are bytes and operations over published speeds; nothing was run',
  ]


def _row(ahead: Ahead, program: Program) -> tuple[str, ...]:
  seconds = [program.seconds(ahead.chip, n) for n in CYCLES.values()]
  moved = [
    f'{format_size(sizes)} {where}'
    if where == 'once'
    else f'{format_size(sizes)} a {where}'
    for where in reversed(WHERE)
    if (sizes := program.link_bytes(where))
  ]
  return (
    named(program.spec, program.steps),
    str(len(program.steps)),
    'x'.join(map(str, program.mesh.values())),
    'x'.join(map(str, program.shape)),
    format_size(program.argument),
    format_size(program.output),
    format_size(program.peak),
    ', '.join(moved) or 'none',
    _span(seconds, _seconds),
  )


def ahead_json(ahead: Ahead) -> dict[str, Any]:
  """The same as plain data; bytes and seconds per step and device."""
  return {
    'topology': ahead.topology,
    'chips': len(ahead.devices),
    'memory_bytes': ahead.chip.memory,
    'fits': not ahead.misfits,
    'does_not_fit': [
      {'program': named(m.spec, m.steps), 'reason': m.reason} for m in ahead.misfits
    ],
    'seconds_estimate': {name: ahead.seconds(n) for name, n in CYCLES.items()},
    'link_bytes': {
      name: sum(_moved(p, n) for p in ahead.programs) for name, n in CYCLES.items()
    },
    'programs': [
      {
        'program': named(p.spec, p.steps),
        'n_steps': len(p.steps),
        'mesh': dict(p.mesh),
        'padded_shape': list(p.shape),
        'compile_seconds': round(p.compile_seconds, 1),
        'argument_bytes': p.argument,
        'output_bytes': p.output,
        'peak_memory_bytes': p.peak,
        'collectives': [
          {'op': c.op, 'bytes': c.nbytes, 'where': c.where} for c in p.collectives
        ],
        'seconds_estimate': {
          name: p.seconds(ahead.chip, n) for name, n in CYCLES.items()
        },
      }
      for p in ahead.programs
    ],
  }


def _moved(program: Program, cycles: int) -> int:
  """Bytes that collectives hand to the links of a chip in all steps of a program."""
  return len(program.steps) * program.moved(cycles)


def _solver_steps(ahead: Ahead, cycles: int) -> str:
  """Of all programs that solve; of none where none does."""
  steps = sorted({n for p in ahead.programs if (n := p.solver_steps(cycles))})
  return _span([steps[0], steps[-1]], str) if steps else 'no'


def _span(numbers: Sequence[float], text: Callable[[float], str]) -> str:
  return ' to '.join(dict.fromkeys(map(text, numbers)))


def _seconds(seconds: float) -> str:
  return f'{seconds:.3g} s' if seconds >= 0.1 else f'{seconds * 1e3:.2g} ms'
