"""Same-shaped tensors grouped into layer stacks, and stacks cut into steps.

A step is what is read, computed and written at once: some layers of a stack with
all their rows, or, where rows are independent, a block of rows.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.errors import InputError
from resmerge_jax.plan.accelerators import Accelerators, Cpu, RowBytes, step_shape
from resmerge_jax.plan.rules import Action, Rule, family_of
from resmerge_jax.sizes import format_size
from resmerge_jax.types import DTYPES, FLOAT_CODES, Family, TensorRef

STEP_BYTES = 36 * 2**20
PROCESS_BYTES = 180 * 2**20  # anonymous: the interpreter with JAX and its programs
DEFAULT_BUDGET = 2 * 2**30
# Outputs up to this size come from malloc's heap, which keeps what is freed (measured:
# as much again as three outputs); larger ones have a mapping of their own.
HEAP_BLOCK_BYTES, FRAGMENTS = 32 * 2**20, 3
STAGED = 2  # input sets alive: one being read, one being computed
FLOAT32 = 4


class Chosen(NamedTuple):
  """How a tensor is merged: parameters of a method (None: copied) and of what follows it.

  `whole`: all rows of a matrix must be together. `scans`: how often it is read before.
  `scratch`: bytes that its program needs per entry of a matrix beside what is stored.
  `matrix_scratch`: bytes that it needs for one matrix of this tensor besides.
  `redone`: whether a matrix may be merged once more, on the host. `on_factors`: whether
  products of factors are merged without forming them. `loses_rank`: updates up to this
  rank come out as nothing. `spans`: as of a method.
  """

  method: Any
  post: tuple[Any, ...] = ()
  whole: bool = False
  scans: int = 0
  scratch: int = 0
  matrix_scratch: int = 0
  redone: bool = False
  on_factors: bool = False
  loses_rank: int = 0
  spans: str = ''

  def __str__(self) -> str:
    """'Ties(keep=0.2) then Liti(eta=0.5)', with what differs from the defaults."""
    if self.method is None:
      return 'copied'
    return ' then '.join(_described(params) for params in (self.method, *self.post))


def _described(params: Any) -> str:
  fields = [
    f'{field.name}={value!r}'
    for field in dataclasses.fields(params)
    if (value := getattr(params, field.name)) != field.default
  ]
  return f'{type(params).__name__}({", ".join(fields)})'


Choose = Callable[[Rule, TensorRef], Chosen]


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
  """Tensors with one shape (matrix view), one way to be merged, equal stored dtypes.

  `dtypes` are those of the base and of each expert. `sources` are those that have whole
  tensors to read: 0, the base, and experts that are models; a copy needs no expert.
  `rank` is the largest of their factors, 0 if there are none. `family` is None where the
  action does not depend on it. `present[i]`: whether source i has them; an expert that
  has not counts as unchanged. Among `names` are parts of tensors (`TensorRef.part`),
  each a matrix of its own. `layers` x `rows` is the shape of one step.
  """

  action: Action
  chosen: Chosen
  family: Family | None
  n_rows: int
  n_cols: int
  dtypes: tuple[str, ...]
  out_dtype: str
  present: tuple[bool, ...]
  names: tuple[str, ...]
  sources: tuple[int, ...]
  rank: int = 0
  layers: int = 1
  rows: int = 1

  @property
  def n_experts(self) -> int:
    """As staged: none for a copy."""
    return 0 if self.action == 'base' else len(self.dtypes) - 1

  @property
  def expert_dtype(self) -> str:
    """One dtype for all whole tensors of experts: their own, or float32 if they differ."""
    codes = {self.dtypes[i] for i in self.sources[1:]} or {self.dtypes[0]}
    return codes.pop() if len(codes) == 1 else 'F32'

  @property
  def is_formed(self) -> bool:
    """Whether a program makes float32 task vectors before it merges."""
    whole = len(self.sources) - 1
    has_products = whole < self.n_experts or self.rank > 0
    return has_products and (whole > 0 or not self.chosen.on_factors)

  @property
  def is_float(self) -> bool:
    return self.dtypes[0] in FLOAT_CODES

  @property
  def row_bytes(self) -> int:
    """Bytes of one row over all sources as staged (mixed dtypes become float32)."""
    codes = [self.dtypes[0], *[self.expert_dtype] * (len(self.sources) - 1)]
    return sum(self.n_cols * DTYPES[code].itemsize for code in codes)

  @property
  def factor_bytes(self) -> int:
    """Bytes of the factors of one layer as staged."""
    return self.n_experts * self.rank * (self.n_rows + self.n_cols) * FLOAT32


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
  """Rows [row_start, row_stop) of the tensors `names` of one stack.

  `present[i]` tells whether source i has these rows (vocabularies may differ).
  """

  stack: Stack
  names: tuple[str, ...]
  row_start: int
  row_stop: int
  present: tuple[bool, ...]

  @property
  def label(self) -> str:
    """What progress shows: 'model.layers.0.mlp.up_proj.weight and 3 like it'."""
    more = f' and {len(self.names) - 1} like it' if len(self.names) > 1 else ''
    return self.names[0] + more

  @property
  def nbytes(self) -> int:
    """Bytes to read; of factors, those of whole matrices as they are staged."""
    rows = self.row_stop - self.row_start
    factors = self.stack.factor_bytes * rows // max(self.stack.n_rows, 1)
    return len(self.names) * factors + sum(
      len(self.names) * rows * self.stack.n_cols * DTYPES[self.stack.dtypes[i]].itemsize
      for i in self.stack.sources
      if self.present[i]
    )


def build_stacks(
  group: ExpertGroup,
  rules: Mapping[str, Rule],
  out: Mapping[str, TensorRef],
  *,
  choose: Choose,
  budget: int | None,
  devices: Accelerators | Cpu,
) -> tuple[Stack, ...]:
  """The stacks of a merge, in the order of the base's files.

  Args:
    out: the output tensors, by name.
    choose: how the tensors of a rule are merged.
    budget: bytes of anonymous memory the process may use; None: DEFAULT_BUDGET, or
      what the largest matrix needs.
    devices: what computes.

  Raises:
    InputError: the budget is below what the largest matrix needs, with that number.
  """
  members: dict[Stack, list[str]] = {}
  for name in group.names:
    rule, sources = rules[name], range(len(group.sources))
    ref = out[name].part(0) if rule.splits(out[name]) else out[name]
    read = sources[:1] if rule.action == 'base' else sources
    loras = [group.lora(i, name) for i in read]
    key = Stack(
      action=rule.action,
      chosen=choose(rule, ref),
      family=family_of(name) if rule.action == 'method' else None,
      n_rows=ref.rows,
      n_cols=ref.cols,
      dtypes=tuple(group.ref(i, name).dtype for i in sources),
      out_dtype=ref.dtype,
      present=tuple(group.has(i, name) for i in sources),
      names=(),
      sources=tuple(i for i in read if group.stores(i, name)),
      rank=int(any(loras)),  # all ranks alike, so that they share a program
    )
    members.setdefault(key, []).extend(rule.matrices(out[name]))
  stacks = [
    dataclasses.replace(key, names=tuple(names), rank=_rank(group, key, names))
    for key, names in members.items()
  ]
  floor = max(
    (_peak(s, 1, s.n_rows if s.chosen.whole else 1, devices) for s in stacks), default=0
  )
  if budget is None and isinstance(devices, Cpu):
    budget = max(DEFAULT_BUDGET, floor)
  if budget is not None and floor > budget:
    raise InputError(
      f'memory_budget: got {format_size(budget)}, the largest matrix needs '
      f'{format_size(floor)} ({floor} bytes)',
      why='this method takes all rows of a matrix at once',
      fix=f'pass --memory_budget={floor} or more',
    )
  room = math.inf if budget is None else budget - PROCESS_BYTES
  return tuple(_sized(stack, room, devices) for stack in stacks)


def _rank(group: ExpertGroup, stack: Stack, names: Sequence[str]) -> int:
  """The largest rank of their factors."""
  if not stack.rank:
    return 0
  sources = range(1, len(stack.dtypes))
  loras = (group.lora(i, name) for i in sources for name in names)
  return max(lora.rank for lora in loras if lora)


def _parts(
  stack: Stack, layers: int, rows: int, devices: Accelerators | Cpu
) -> tuple[int, int, int]:
  """Bytes of steps of this size: staged input, what programs need, output.

  What one process holds in memory. A CPU device computes one layer at a time;
  accelerators have memory of their own.
  """
  elements = rows * stack.n_cols
  blocks = 1 if stack.chosen.whole else math.ceil(stack.n_rows / max(rows, 1))
  alive = min(STAGED, math.ceil(len(stack.names) / layers) * blocks)
  staged = alive * layers * (rows * stack.row_bytes + stack.factor_bytes)
  out = layers * elements * DTYPES[stack.out_dtype].itemsize
  out *= alive if out > HEAP_BLOCK_BYTES else alive + FRAGMENTS
  if isinstance(devices, Accelerators):
    n = devices.n_processes
    return math.ceil(staged / n), 0, math.ceil(out / n)
  at_once = min(layers, devices.count)
  scratch = elements * _scratch(stack) + stack.chosen.matrix_scratch
  return staged, at_once * scratch, out


def _scratch(stack: Stack) -> int:
  """Bytes per entry: of formed task vectors too, or of the update that factors give."""
  if stack.is_formed:
    return stack.chosen.scratch + stack.n_experts * FLOAT32
  return max(stack.chosen.scratch, FLOAT32 if stack.rank else 0)


def _peak(stack: Stack, layers: int, rows: int, devices: Accelerators | Cpu) -> int:
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
  parts = [_parts(s, s.layers, s.rows, devices) for s in stacks] or [(0, 0, 0)]
  return PROCESS_BYTES + sum(max(column) for column in zip(*parts, strict=True))


def _sized(stack: Stack, room: float, devices: Accelerators | Cpu) -> Stack:
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
  per_row = max(_peak(stack, 1, 1, devices) - PROCESS_BYTES, 1)
  fitting = min(room // per_row, n_layers * n_rows)
  target = min(STEP_BYTES // max(stack.row_bytes, 1), fitting)
  if stack.chosen.whole or target >= n_rows:
    layers = min(max(target // n_rows, count), max(fitting // n_rows, 1))
    layers = min(int(layers), n_layers)
    return (layers if count > 1 else _even_share(n_layers, layers)), n_rows
  return 1, _even_share(n_rows, max(int(target), 1))


def _shape_on(devices: Accelerators, stack: Stack, room: float) -> tuple[int, int]:
  bare = dataclasses.replace(stack, rank=0)
  staged, _, out = _parts(bare, 1, 1, dataclasses.replace(devices, n_processes=1))
  factors = math.ceil(stack.factor_bytes / max(stack.n_rows, 1))
  vectors = stack.n_cols * FLOAT32 * len(stack.dtypes) if stack.chosen.whole else 0
  row = RowBytes(
    stored=max(stack.row_bytes + factors, 1),
    device=max(staged // STAGED + factors + vectors + out, 1),
    host=max(staged + STAGED * factors + out, 1),
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


def build_steps(stacks: Sequence[Stack], group: ExpertGroup) -> tuple[Step, ...]:
  """All steps, stack by stack. Tensors without elements need none."""
  return tuple(
    step
    for stack in stacks
    if stack.n_rows * stack.n_cols
    for step in _steps(stack, group)
  )


def _steps(stack: Stack, group: ExpertGroup) -> Iterator[Step]:
  if stack.rows == stack.n_rows and not any(
    name in group.uneven for name in stack.names
  ):
    for start in range(0, len(stack.names), stack.layers):
      names = stack.names[start : start + stack.layers]
      yield Step(stack, names, 0, stack.n_rows, stack.present)
    return
  for name in stack.names:
    has = [group.ref(i, name).rows for i in range(len(stack.dtypes))]
    cuts = {0, stack.n_rows} | {n for n in has if n < stack.n_rows}
    cuts |= set(range(0, stack.n_rows, stack.rows))
    edges = sorted(cuts)
    for start, stop in itertools.pairwise(edges):
      here = (p and n > start for p, n in zip(stack.present, has, strict=True))
      yield Step(stack, (name,), start, stop, tuple(here))
