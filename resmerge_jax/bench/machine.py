"""Facts of the machine that numbers depend on."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

from resmerge_jax.sizes import cores
from resmerge_jax.version import __version__

_PACKAGES = ('jax', 'jaxlib', 'numpy', 'ml_dtypes', 'mergekit', 'torch')


def facts() -> dict[str, Any]:
  """Processor, cores, memory in bytes, versions, load and the date (UTC)."""
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'cpu': _cpu(),
    'cores': cores(),
    'memory_bytes': os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'),
    'load_average': [round(load, 2) for load in os.getloadavg()],
    'system': platform.platform(),
    'python': platform.python_version(),
    'versions': {'resmerge_jax': __version__, **_versions()},
  }


def describe(found: dict[str, Any]) -> str:
  """One line: who measured."""
  versions = ', '.join(f'{name} {v}' for name, v in found['versions'].items())
  return (
    f'{found["date"]}: {found["cores"]} cores of {found["cpu"]}, load '
    f'{found["load_average"][0]} before; Python {found["python"]}, {versions}'
  )


def _cpu() -> str:
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    return platform.processor() or platform.machine()
  found = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
  return found[1] if found else platform.machine()


def _versions() -> dict[str, str]:
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
