"""What the plan is told of devices."""

import jax
import pytest

from resmerge_jax.pipeline.chips import CHIPS, KINDS, device_facts
from resmerge_jax.plan.accelerators import Accelerators, Cpu


class Device:
  """As much of a jax.Device as is asked."""

  platform = 'gpu'

  def __init__(self, kind: str, process: int = 0, stats: dict | None = None):
    self.device_kind, self.process_index, self._stats = kind, process, stats

  def memory_stats(self) -> dict | None:
    return self._stats


def test_cpus():
  assert device_facts(jax.devices()) == Cpu(8, splits_rows=True)  # where layers are few
  assert device_facts(jax.devices(), (4, 2)) == Cpu(4, splits_rows=True)
  assert device_facts(jax.devices(), (8, 1)) == Cpu(8)
  assert device_facts(jax.devices()[:1]) == Cpu()


@pytest.mark.parametrize('kind', KINDS)
def test_tpus_are_known(kind: str):
  devices = [Device(kind, i // 4) for i in range(8)]
  memory = CHIPS[KINDS[kind]].memory
  assert device_facts(devices) == Accelerators(8, memory, 2)
  assert device_facts(devices, (2, 3)) == Accelerators(6, memory, 2, (2, 3))


def test_other_kinds_are_asked():
  told = {'bytes_limit': 5 * 2**30 + 12345}
  gpus = [Device('H100', stats=told), Device('H100', process=1)]
  assert device_facts(gpus) == Accelerators(2, 5 * 2**30, 2)
  assert device_facts(gpus[::-1]) == Accelerators(2, 5 * 2**30, 2)  # not the other's
  assert device_facts([Device('M3')]) == Cpu()  # does not tell: steps as on a CPU
  # Of any number of processes: the plan must not depend on it.
  assert device_facts([Device('M3'), Device('M3', 1)]) == Cpu(2, splits_rows=True)
