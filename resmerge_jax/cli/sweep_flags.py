"""--sweep, and the sweep of a config file: which merges are asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from resmerge_jax.cli.mergekit_yaml import requested
from resmerge_jax.config import MergeConfig, config_from
from resmerge_jax.errors import InputError
from resmerge_jax.sweep_settings import settings_of


def define_sweep_flag() -> None:
  flags.DEFINE_multi_string(
    'sweep',
    None,
    'field and values, such as method.rho=0.1,0.2: a merge for each, in a folder of '
    'OUTPUT; again for the product of several lists (docs/sweeps.md)',
  )


def requested_merges(
  argv: Sequence[str],
) -> tuple[MergeConfig | dict[str, MergeConfig], tuple[str, ...]]:
  """The merge that the flags ask for, or those of a sweep by their names, and notes.

  Raises:
    InputError: as `requested`, `config_from` and `settings_of`.
  """
  values, notes = requested(argv)
  named = _named(values.pop('sweep', None) or ())
  lists = flags.FLAGS.sweep or []
  if not named and not lists:
    return config_from(values), notes
  return settings_of(values, lists, named), notes


def _named(sweep: Any) -> dict[str, dict[str, Any]]:
  """The fields of each setting of a config file, by its name."""
  found: dict[str, dict[str, Any]] = {}
  for setting in sweep if isinstance(sweep, list | tuple) else [sweep]:
    fields = dict(setting) if isinstance(setting, Mapping) else {}
    name = fields.pop('name', None)
    if not isinstance(name, str) or name in found:
      raise InputError(
        f'config.sweep: got {setting!r}, expected settings with a name of their own',
        fix="write config.sweep = ({'name': 'full'}, {'name': 'a', 'method': {'rho': 0}})",
      )
    found[name] = fields
  return found
