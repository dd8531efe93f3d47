"""Names that mean the same tensor in two checkpoints, and names that are no weights."""

import collections
import re
from collections.abc import Iterable, Mapping

# Saved by old versions of libraries; every program computes them from config.json.
BUFFER = r'(?:^|\.)(?:inv_freq|masked_bias|position_ids|(?:cos|sin)_cached)$'
# What a multimodal model, or a version of a library, puts before its language model.
_PREFIX = re.compile(r'(?:(?:model|language_model)\.)*')


def is_buffer(name: str) -> bool:
  """Whether the tensor follows from config.json."""
  return re.search(BUFFER, name) is not None


def prefix_of(name: str) -> str:
  """'model.language_model.' of 'model.language_model.layers.0.mlp.up_proj.weight'."""
  found = _PREFIX.match(name)
  assert found is not None
  return found[0]


def other_prefix(wanted: Iterable[str], stored: Iterable[str]) -> dict[str, str]:
  """Wanted name -> stored name, for pairs that differ in their prefix alone.

  Args:
    wanted: names that one checkpoint has and the other has not.
    stored: those that the other has alone. Names with two candidates get none.
  """
  here, there = _by_ending(wanted), _by_ending(stored)
  return {
    names[0]: there[ending][0]
    for ending, names in here.items()
    if len(names) == 1 == len(there.get(ending, ()))
  }


def _by_ending(names: Iterable[str]) -> dict[str, list[str]]:
  endings: dict[str, list[str]] = {}
  for name in names:
    endings.setdefault(name.removeprefix(prefix_of(name)), []).append(name)
  return endings


def prefix_notes(aliases: Mapping[str, str]) -> list[str]:
  """'4 tensors are called model.* for the base's model.language_model.*', per pair."""
  pairs = collections.Counter(
    (prefix_of(stored), prefix_of(wanted)) for wanted, stored in aliases.items()
  )
  return [
    f"{n} tensors are called {stored}* for the base's {wanted}*"
    for (stored, wanted), n in pairs.items()
  ]
