"""What the plan is told of devices."""

import jax
import pytest

from resmerge_jax.pipeline.chips import CHIPS, KINDS, accelerators
from resmerge_jax.plan.accelerators import Accelerators


class Device:
  """As much of a jax.Device as is asked."""

  platform = 'gpu'

  def __init__(self, kind: str, process: int = 0, stats: dict | None = None):
    self.device_kind, self.process_index, self._stats = kind, process, stats

  def memory_stats(self) -> dict | None:
    return self._stats


def test_cpus_are_none():
  assert accelerators(jax.devices()) is None


@pytest.mark.parametrize('kind', KINDS)
def test_tpus_are_known(kind: str):
  devices = [Device(kind, i // 4) for i in range(8)]
  memory = CHIPS[KINDS[kind]].memory
  assert accelerators(devices) == Accelerators(8, memory, 2)
  assert accelerators(devices, (2, 3)) == Accelerators(6, memory, 2, (2, 3))


def test_other_kinds_are_asked():
  assert accelerators([Device('H100', stats={'bytes_limit': 5})]) == Accelerators(1, 5)
  assert accelerators([Device('M3')]) is None  # does not tell: steps as on a CPU
