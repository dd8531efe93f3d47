"""How large a step is on accelerators: whole matrices on each device, in its memory.

One rule for real devices and for a topology that is only compiled for: it knows the
number of devices and the memory of one, nothing else.
"""

import dataclasses
import math

# Of a device's memory, for the arrays of one step. A program's own temporaries beside
# the task vectors, and fragmentation, have the rest.
SHARE = 0.5
# Stored input of a step on one device: enough to hide the start of a program, little
# enough that the first step does not wait long for its bytes.
STEP_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Accelerators:
  """The devices of all processes: how many, and the memory of one in bytes.

  `mesh` is (layer, row) where the user has set it.
  """

  count: int
  bytes_each: int
  n_processes: int = 1
  mesh: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Cpu:
  """CPU devices: how many can take layers of their own, whether some share a matrix.

  More than one only where the user asks for virtual devices or starts several processes.
  The number of processes is not asked: any may continue a run of the same plan.
  """

  count: int = 1
  splits_rows: bool = False


@dataclasses.dataclass(frozen=True)
class RowBytes:
  """Bytes per row of a step: its stored input, all on the device, all on the host."""

  stored: int
  device: int
  host: int


def step_shape(
  accelerators: Accelerators,
  n_layers: int,
  n_rows: int,
  row: RowBytes,
  *,
  whole_matrix: bool,
  host_room: float,
) -> tuple[int, int]:
  """(layers, rows) of a step that occupies all devices and fits each.

  The number of layers divides the devices or is a multiple of them (28 layers on 8
  devices or on 32: padded to 32), so each device has whole matrices and needs no other.
  Only where a matrix is too large for a device, or matrices are few, do several devices
  share one by rows. Matrices whose rows are independent are cut instead.

  Args:
    whole_matrix: whether a step needs all rows of its matrices.
    host_room: bytes that each process has for its share of a step; math.inf: no limit.
  """
  count = accelerators.count
  most_rows = min(
    SHARE * accelerators.bytes_each * count / row.device,
    host_room * accelerators.n_processes / row.host,
  )
  wanted_rows = min(STEP_BYTES * count / row.stored, most_rows)
  if not whole_matrix and wanted_rows < n_rows:
    return 1, math.ceil(n_rows / math.ceil(n_rows / max(int(wanted_rows), 1)))
  sizes = _layer_counts(accelerators, n_layers)
  fitting = [
    n for n in sizes if n * n_rows <= (most_rows if n <= count else wanted_rows)
  ]
  n_steps = math.ceil(n_layers / max(fitting, default=sizes[0]))
  return next(n for n in sizes if n * n_steps >= n_layers), n_rows


def _layer_counts(accelerators: Accelerators, n_layers: int) -> list[int]:
  """Layers that a step may have, up to the first that holds all of them."""
  count, mesh = accelerators.count, accelerators.mesh
  divisors = [n for n in range(1, count) if count % n == 0]
  first, unit = ([], mesh[0]) if mesh else (divisors, count)
  multiples = range(unit, n_layers + unit, unit)
  enough = next(n for n in [*first, *multiples] if n >= n_layers)
  return [n for n in [*first, *multiples] if n <= enough]
