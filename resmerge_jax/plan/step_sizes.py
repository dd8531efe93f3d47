"""How large a step may be, and the memory that steps take."""

import dataclasses
import math
from collections.abc import Sequence

from resmerge_jax.plan.accelerators import Accelerators, Cpu, RowBytes, step_shape
from resmerge_jax.plan.stacks import FLOAT32, Stack
from resmerge_jax.types import DTYPES

STEP_BYTES = 36 * 2**20
PROCESS_BYTES = 180 * 2**20  # anonymous: the interpreter with JAX and its programs
# Of a program that a further setting of a sweep runs, or of its share in several
# (measured: 2 to 11 MiB a program, most settings share the larger ones).
PROGRAM_BYTES = 4 * 2**20
DEFAULT_BUDGET = 2 * 2**30
# Outputs up to this size come from malloc's heap, which keeps what is freed (measured:
# as much again as three outputs); larger ones have a mapping of their own.
HEAP_BLOCK_BYTES, FRAGMENTS = 32 * 2**20, 3
STAGED = 2  # input sets alive: one being read, one being computed
# Larger sets that the system can read ahead are alive one by one: filling one from the
# page cache takes less than the page faults of a second (docs/performance.md).
ALONE_BYTES = 256 * 2**20


def _parts(
  stack: Stack, layers: int, rows: int, devices: Accelerators | Cpu
) -> tuple[int, int, int, int]:
  """Bytes of steps of this size: input computed, input read, what programs need, output.

  What one process holds in memory. A CPU device computes one layer at a time;
  accelerators have memory of their own.
  """
  elements = rows * stack.n_cols
  blocks = 1 if stack.chosen.whole else math.ceil(stack.n_rows / max(rows, 1))
  alive = min(STAGED, math.ceil(len(stack.names) / layers) * blocks)
  computed = layers * (rows * stack.row_bytes + stack.factor_bytes)
  read = 0 if alive == 1 or is_alone(stack, computed, devices) else computed
  alive = STAGED if stack.swept else alive  # one is computed, one is written
  out = layers * elements * DTYPES[stack.out_dtype].itemsize
  out *= alive if out > HEAP_BLOCK_BYTES else alive + FRAGMENTS
  if isinstance(devices, Accelerators):
    n = devices.n_processes
    return math.ceil(computed / n), math.ceil(read / n), 0, math.ceil(out / n)
  at_once = min(layers, devices.count)
  scratch = elements * _scratch(stack, devices) + stack.chosen.matrix_scratch
  return computed, read, at_once * scratch, out


def is_alone(stack: Stack, nbytes: int, devices: Accelerators | Cpu) -> bool:
  """Whether a step's input of so many bytes is read when that of no other such is held."""
  return isinstance(devices, Cpu) and stack.reads_ahead and nbytes > ALONE_BYTES


def _scratch(stack: Stack, devices: Cpu) -> int:
  """Bytes per entry: of formed task vectors too, or of the update that factors give."""
  in_blocks = stack.chosen.in_blocks and not devices.splits_rows
  scratch = stack.chosen.scratch - (FLOAT32 if in_blocks else 0)
  if stack.is_formed:
    return scratch + stack.n_experts * FLOAT32
  return max(scratch, FLOAT32 if stack.rank else 0)


def peak(stack: Stack, layers: int, rows: int, devices: Accelerators | Cpu) -> int:
  """Bytes of a process all of whose steps have this size and go to float64, one by one.

  A matrix that does is widened, and merged once more.
  """
  again = stack.n_cols * rows * (FLOAT32 + DTYPES[stack.out_dtype].itemsize)
  again = again if stack.chosen.redone else 0
  return PROCESS_BYTES + sum(_parts(stack, layers, rows, devices)) + again


def peak_memory(stacks: Sequence[Stack], devices: Accelerators | Cpu) -> int:
  """Predicted peak of anonymous resident memory, bytes, if no head needs float64.

  Buffers grow to the largest step of any stack, so the parts peak one by one.
  """
  parts = [_parts(s, s.layers, s.rows, devices) for s in stacks] or [(0, 0, 0, 0)]
  return PROCESS_BYTES + sum(max(column) for column in zip(*parts, strict=True))


def program_bytes(stacks: Sequence[Stack], settings: int) -> int:
  """What the programs of further settings hold of a process' memory."""
  computed = sum(stack.action != 'base' for stack in stacks)
  return PROGRAM_BYTES * computed * (settings - 1)


def sized(stack: Stack, room: float, devices: Accelerators | Cpu) -> Stack:
  """The stack with its step size; `room` are the bytes that a process has for a step."""
  if isinstance(devices, Accelerators) and stack.action != 'base':
    layers, rows = _shape_on(devices, stack, room)
  else:
    count = devices.count if isinstance(devices, Cpu) else 1
    layers, rows = _shape_on_cpu(stack, room, devices, count)
  return dataclasses.replace(stack, layers=layers, rows=rows)


def _shape_on_cpu(
  stack: Stack, room: float, devices: Accelerators | Cpu, count: int
) -> tuple[int, int]:
  """(layers, rows): as many layers as fit, one per device at least, or a block of rows."""
  n_layers, n_rows = len(stack.names), max(stack.n_rows, 1)
  bare = dataclasses.replace(stack, chosen=stack.chosen._replace(matrix_scratch=0))
  per_row = max(peak(bare, 1, 1, devices) - PROCESS_BYTES, 1)
  fitting = (room - count * stack.chosen.matrix_scratch) // per_row
  if fitting < count * n_rows:  # not all devices have a layer, nor its scratch
    fitting = room // (per_row + stack.chosen.matrix_scratch / n_rows)
  fitting = min(fitting, n_layers * n_rows)
  target = min(STEP_BYTES // max(stack.row_bytes, 1), fitting)
  if stack.chosen.whole or target >= n_rows:
    layers = min(max(target // n_rows, count), max(fitting // n_rows, 1))
    layers = min(int(layers), n_layers)
    return (layers if count > 1 else _even_share(n_layers, layers)), n_rows
  return 1, _even_share(n_rows, max(int(target), 1))


def _shape_on(devices: Accelerators, stack: Stack, room: float) -> tuple[int, int]:
  bare = dataclasses.replace(stack, rank=0)
  one_process = dataclasses.replace(devices, n_processes=1)
  stored, read, _, out = _parts(bare, 1, 1, one_process)
  factors = math.ceil(stack.factor_bytes / max(stack.n_rows, 1))
  vectors = stack.n_cols * FLOAT32 * len(stack.dtypes) if stack.chosen.whole else 0
  row = RowBytes(
    stored=max(stack.row_bytes + factors, 1),
    device=max(stored + factors + vectors + out, 1),
    host=max(stored + read + STAGED * factors + out, 1),
  )
  return step_shape(
    devices,
    len(stack.names),
    max(stack.n_rows, 1),
    row,
    whole_matrix=stack.chosen.whole,
    host_room=room,
  )


def _even_share(n: int, most: int) -> int:
  """At most `most` of `n` at once, with the last share as full as can be."""
  return math.ceil(n / math.ceil(n / most))
