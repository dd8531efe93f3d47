"""Compiles all steps of a plan for a TPU topology and tells what they would take."""

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from resmerge_jax.checkpoint.summary import fold_names
from resmerge_jax.errors import InputError
from resmerge_jax.linalg.head import THIN
from resmerge_jax.linalg.krylov import LATER_STEPS, cycle_steps
from resmerge_jax.methods.table import method_of
from resmerge_jax.pipeline.chips import Chip, chip_of
from resmerge_jax.pipeline.hlo import Collective, collectives
from resmerge_jax.pipeline.kernel_spec import KernelSpec, step_spec
from resmerge_jax.pipeline.kernels import compile_kernel
from resmerge_jax.plan.accelerators import Accelerators
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.plan.stacks import FLOAT32, Step
from resmerge_jax.sharding import AXES
from resmerge_jax.sizes import cores, format_size

# Cycles of the solver, which may end after any of them. A head that stands out takes
# two, no head more than all.
CYCLES = {'settled': 2, 'at_most': 1 + len(LATER_STEPS)}
BF16_PRODUCTS = 6  # of one float32 product at the highest precision


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled step. All sizes are bytes of one device, padding included.

  `accessed` and `flops` are the compiler's counts, which take each loop once.
  """

  spec: KernelSpec
  steps: tuple[Step, ...]
  mesh: Mapping[str, int]
  shape: tuple[int, int, int]
  compile_seconds: float
  argument: int
  output: int
  peak: int
  accessed: float
  flops: float
  collectives: tuple[Collective, ...]

  @property
  def needed(self) -> int:
    """With the output of the step before, which is still being fetched."""
    return self.peak + self.output

  def link_bytes(self, where: str) -> int:
    """What collectives hand to the links of one device, `where` as in Collective."""
    n = self.mesh[AXES[1]]
    rounds = {'all-reduce': 2}  # around a ring: sum, then tell; all others once
    moved = sum(
      rounds.get(c.op, 1) * c.nbytes for c in self.collectives if c.where == where
    )
    return math.ceil(moved * (n - 1) / n)

  def solver_steps(self, cycles: int) -> int:
    """Steps of so many cycles; 0 where no head is solved by steps."""
    _, rows, cols = self.shape
    solves = self.spec.head_rank and min(self.spec.rows, self.spec.cols) > THIN
    return sum(cycle_steps(rows, cols)[:cycles]) if solves else 0

  def moved(self, cycles: int) -> int:
    """Bytes that collectives of one step hand to the links of one device."""
    times = {
      'once': 1,
      'solver cycle': cycles,
      'solver step': max(self.solver_steps(cycles), 1),
    }
    return sum(n * self.link_bytes(where) for where, n in times.items())

  def seconds(self, chip: Chip, cycles: int) -> float:
    """Estimate of one step: the slower of memory and arithmetic, then the links."""
    spec, elements = self.spec, math.prod(self.shape) / math.prod(self.mesh.values())
    more = max(self.solver_steps(cycles) - 1, 0) * spec.n_experts * elements
    memory = (self.accessed + more * 2 * FLOAT32) / chip.memory_speed  # there and back
    block = spec.start_shape[0]
    products = (self.flops + more * 4 * block) * BF16_PRODUCTS / chip.flops
    return max(memory, products) + self.moved(cycles) / chip.link_speed


@dataclasses.dataclass(frozen=True)
class Misfit:
  """A step that does not fit; `reason` has the numbers."""

  spec: KernelSpec
  steps: tuple[Step, ...]
  reason: str


@dataclasses.dataclass(frozen=True)
class Ahead:
  """What compiling ahead of time tells."""

  topology: str
  devices: tuple[jax.Device, ...]
  chip: Chip
  programs: tuple[Program, ...]
  misfits: tuple[Misfit, ...]

  def seconds(self, cycles: int) -> float:
    """Estimate of all steps, one after the other, without reading and writing."""
    return sum(len(p.steps) * p.seconds(self.chip, cycles) for p in self.programs)

  def check(self) -> None:
    """Raises InputError where a step does not fit."""
    if not self.misfits:
      return
    raise InputError(
      f'{len(self.misfits)} of {len(self.misfits) + len(self.programs)} programs do '
      f'not fit in the {format_size(self.chip.memory)} of a chip of {self.topology}',
      [f'{named(m.spec, m.steps)}: {m.reason}' for m in self.misfits],
      why='a step holds stored weights, float32 task vectors and output of its matrices '
      'on the chips',
      fix='take more chips or chips with more memory, or let more of them share a '
      'matrix by its rows (--mesh=layer:1,row:N)',
    )


def compile_ahead(
  plan: MergePlan,
  topology: str,
  devices: tuple[jax.Device, ...],
  progress: Callable[[str], object],
) -> Ahead:
  """Compiles every distinct step of `plan`; `progress` hears of each before it starts."""
  chip = chip_of(devices[0])
  assert chip is not None
  assert isinstance(plan.devices, Accelerators)
  steps: dict[KernelSpec, list[Step]] = {}
  for step in plan.steps:
    if step.stack.action != 'base':
      spec = step_spec(step, plan.devices.mesh)
      steps.setdefault(spec, []).append(step)

  def compiled(spec: KernelSpec) -> Program | Misfit:
    progress(named(spec, steps[spec]))
    return _compile(spec, tuple(steps[spec]), devices, chip)

  with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
    found = list(pool.map(compiled, steps))
  return Ahead(
    topology,
    devices,
    chip,
    tuple(p for p in found if isinstance(p, Program)),
    tuple(m for m in found if isinstance(m, Misfit)),
  )


def _compile(
  spec: KernelSpec, steps: tuple[Step, ...], devices: tuple[jax.Device, ...], chip: Chip
) -> Program | Misfit:
  start = time.perf_counter()
  try:
    kernel = compile_kernel(spec, devices)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    reason = str(error).partition('RESOURCE_EXHAUSTED:')[2].strip().splitlines()[0]
    return Misfit(spec, steps, reason)
  memory, cost = kernel.run.memory_analysis(), kernel.run.cost_analysis()
  program = Program(
    spec=spec,
    steps=steps,
    mesh=dict(spec.mesh(devices).shape),
    shape=kernel.shape,
    compile_seconds=time.perf_counter() - start,
    argument=memory.argument_size_in_bytes,
    output=memory.output_size_in_bytes,
    peak=memory.peak_memory_in_bytes,
    accessed=cost['bytes accessed'],
    flops=cost['flops'],
    collectives=collectives(kernel.run.as_text()),
  )
  if program.needed > chip.memory:
    return Misfit(
      spec,
      steps,
      f'{format_size(program.peak)}, and {format_size(program.output)} of output of '
      'the step before',
    )
  return program


def named(spec: KernelSpec, steps: Sequence[Step]) -> str:
  """'56 x [18944, 3584] ffn (model.layers.{0..27}.mlp.gate_proj.weight, 1 more)'."""
  stacks = {id(step.stack): step.stack for step in steps}.values()
  names = [name for stack in stacks for name in stack.names]
  first, *others = (pattern for pattern, _ in fold_names(names))
  kind = spec.family or method_of(spec.params).name
  n_rows = max(stack.n_rows for stack in stacks)
  more = f', {len(others)} more' if others else ''
  return f'{len(names)} x [{n_rows}, {spec.cols}] {kind} ({first}{more})'
