"""A score as it was found in a file."""

import dataclasses
import math

from resmerge_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Found:
  """`percent` of `column` (a benchmark, or a printed average) for `model`.

  `source` says where it was found, `text` how it was written there.
  """

  model: str
  column: str
  percent: float
  source: str
  text: str = ''


def percent_of(text: str, where: str) -> float | None:
  """A number of percent, '74.32%' or '74.32'; None where none was measured.

  Raises:
    InputError: it is no number from 0 to 100.
  """
  text = text.strip()
  if text in ('', '-', '—', 'N/A'):
    return None
  try:
    number = float(text.removesuffix('%'))
  except ValueError:
    number = math.nan
  if not 0 <= number <= 100:  # false for nan
    raise InputError(
      f'{where}: got {text!r}, expected a score in percent, from 0 to 100',
      fix='leave it empty, or write N/A, where nothing was measured',
    )
  return number
