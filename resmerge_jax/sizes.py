"""Sizes as people write them, '2GiB', '5GB', '1048576', and of the machine."""

import os
import re

from resmerge_jax.errors import InputError

_UNITS = {
  '': 1,
  'b': 1,
  'kb': 10**3,
  'mb': 10**6,
  'gb': 10**9,
  'tb': 10**12,
  'kib': 2**10,
  'mib': 2**20,
  'gib': 2**30,
  'tib': 2**40,
}


def parse_size(text: str | int) -> int:
  """Bytes meant by `text`. GB is 10^9 bytes, GiB is 2^30.

  Raises:
    InputError: not a number with an optional unit, or not positive.
  """
  match = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*', str(text))
  unit = match and _UNITS.get(match[2].lower())
  if not match or unit is None or float(match[1]) <= 0:
    raise InputError(
      f'not a size: {text!r}',
      fix="write bytes, or a number with a unit such as '2GiB' or '5GB'",
    )
  return int(float(match[1]) * unit)


def format_size(n_bytes: float) -> str:
  """`n_bytes` with a binary unit and three digits: 1.46 GiB."""
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if abs(n_bytes) < 1024:
      return f'{n_bytes:.0f} B' if unit == 'B' else f'{n_bytes:.3g} {unit}'
    n_bytes /= 1024
  return f'{n_bytes:.3g} TiB'


def cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
