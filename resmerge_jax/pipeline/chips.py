"""What is known of accelerators: memory, from which steps are sized, and speeds."""

import dataclasses
import math
from collections.abc import Sequence

import jax

from resmerge_jax.plan.accelerators import Accelerators, Cpu


@dataclasses.dataclass(frozen=True)
class Chip:
  """One TPU chip, which JAX shows as one device. Bytes, bytes/s, operations/s.

  `memory` is what libtpu lets a program use. The rest is published (Google Cloud, "TPU
  architecture", one page per version): HBM bandwidth, chip-to-chip bandwidth of all
  links in one direction, peak of bfloat16 products.
  """

  memory: int
  memory_speed: float
  link_speed: float
  flops: float


CHIPS: dict[str, Chip] = {  # by version, as topologies name it
  'v4': Chip(int(30.75 * 2**30), 1.20e12, 300e9, 275e12),
  'v5e': Chip(int(15.75 * 2**30), 0.819e12, 200e9, 197e12),
  'v5p': Chip(int(95.74 * 2**30), 2.765e12, 600e9, 459e12),
  'v6e': Chip(int(31.25 * 2**30), 1.638e12, 400e9, 918e12),
}
KINDS = {  # as JAX names devices
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
}


def chip_of(device: jax.Device) -> Chip | None:
  """None where nothing is known of this kind of device."""
  return CHIPS.get(KINDS.get(device.device_kind, ''))


def device_facts(
  devices: Sequence[jax.Device], mesh: tuple[int, int] | None = None
) -> Accelerators | Cpu:
  """What the plan must know of these devices.

  The memory is that of the table, so that real devices and a topology give one plan;
  other kinds of device are asked, and count as CPUs if they cannot tell.
  """
  n_processes = len({device.process_index for device in devices})
  chip = None if devices[0].platform == 'cpu' else chip_of(devices[0])
  memory = chip.memory if chip else _told_memory(devices)
  if memory is None:
    on_layers, on_rows = mesh or (len(devices), len(devices))
    return Cpu(on_layers, splits_rows=on_rows > 1)
  return Accelerators(
    count=math.prod(mesh) if mesh else len(devices),
    bytes_each=memory,
    n_processes=n_processes,
    mesh=mesh,
  )


def _told_memory(devices: Sequence[jax.Device]) -> int | None:
  """Bytes of a device as it tells them, which only those of this process do.

  In whole GiB: what the driver leaves free varies a little, and processes must agree.
  """
  own = [d for d in devices if d.process_index == jax.process_index()]
  limit = ((own and own[0].memory_stats()) or {}).get('bytes_limit')
  return limit and limit >> 30 << 30
