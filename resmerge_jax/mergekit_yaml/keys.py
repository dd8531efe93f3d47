"""Keys of a file, and how they are refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.parameters import did_you_mean

SHOWN = 120  # characters of a value in a message


def refuse(key: str, value: Any, why: str, fix: str) -> InputError:
  """The error for a value that means something to mergekit and cannot be honoured."""
  text = value if isinstance(value, str) else repr(value)
  text = text if len(text) <= SHOWN else f'{text[: SHOWN - 3]}...'
  return InputError(f'{key}: {text} cannot be honoured', why=why, fix=fix)


def expect(entry: Any, where: str, keys: Sequence[str]) -> None:
  """Raises InputError unless `entry` is a mapping of these keys."""
  if not isinstance(entry, Mapping):
    raise InputError(f'{where}: got {entry!r}, expected keys with values')
  unknown = [f'{k!r}{did_you_mean(str(k), keys)}' for k in entry if k not in keys]
  if unknown:
    raise InputError(
      f'{where}: unknown key',
      unknown,
      why='mergekit skips it in silence, so what it asks for would not happen',
      fix=f'remove it; known keys: {", ".join(keys)}',
    )


def get(entry: Mapping[str, Any], key: str, kind: type, where: str = '') -> Any:
  """entry[key] of this kind, and not empty; raises InputError."""
  value = entry.get(key)
  if not isinstance(value, kind) or not value:
    place = f'{where}.{key}' if where else key
    what = 'a text' if kind is str else 'a list with entries'
    raise InputError(f'{place}: got {value!r}, expected {what}')
  return value
