"""TPU topologies to compile for where there is no TPU."""

import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.chips import CHIPS

EXAMPLES = 'v4:2x2x2, v5e:2x4, v5e:4x8, v5p:2x2x2, v5p:4x4x4, v6e:4x4'
# v4 shows its two cores as one device only if told; the others need no telling.
_CONFIG = {'v4': {'chip_config_name': 'megacore'}}


def topology_devices(name: str) -> tuple[jax.Device, ...]:
  """The devices of a topology such as 'v5e:4x8'. Programs compile for them, none run.

  Raises:
    InputError: libtpu is not installed; there is no such topology.
  """
  version, _, grid = name.partition(':')
  if version not in CHIPS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){1,2}', grid):
    raise InputError(
      f'--topology={name}: expected VERSION:NxN or VERSION:NxNxN, the version one of '
      f'{", ".join(CHIPS)}',
      fix=f'such as {EXAMPLES}: chips along each axis, 2x2 or 2x2x1 of them a host',
    )
  if 'TPU_LIBRARY_PATH' not in os.environ and not importlib.util.find_spec('libtpu'):
    raise InputError(
      f'--topology={name}: libtpu is not installed',
      why='it holds the compiler for TPUs',
      fix="pip install '.[aot]' (about 0.7 GB unpacked; no TPU is needed)",
    )
  try:
    topology = topologies.get_topology_desc(
      name, platform='tpu', **_CONFIG.get(version, {})
    )
  except jax.errors.JaxRuntimeError as error:
    raise InputError(
      f'--topology={name}: libtpu knows no such topology: {str(error).splitlines()[0]}',
      fix=f'such as {EXAMPLES}: chips along each axis, 2x2 or 2x2x1 of them a host',
    ) from error
  devices = tuple(topology.devices)
  assert len(devices) == math.prod(map(int, grid.split('x'))), devices
  return devices
