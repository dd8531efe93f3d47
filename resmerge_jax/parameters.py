"""Parameters of methods and post-processors, made from names and mappings and checked."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.methods.table import METHODS, POSTS


def make_method(name: str, params: Mapping[str, Any] | Any | None = None) -> Any:
  """The parameter dataclass of method `name`, from a mapping of its fields.

  Raises:
    InputError: unknown method or field (with the nearest names), value out of range.
  """
  return _make('method', METHODS, name, params)


def make_post(name: str, params: Mapping[str, Any] | Any | None = None) -> Any:
  """The parameter dataclass of post-processor `name`; raises as `make_method`."""
  return _make('post', POSTS, name, params)


def named(given: Any, make: Callable[[str, Any], Any], where: str) -> tuple[str, Any]:
  """(name, parameters) of a pair, or of a mapping with `name`.

  Raises:
    InputError: it is neither.
  """
  if isinstance(given, str):
    given = (given, {})
  if isinstance(given, Mapping) and 'name' in given:
    given = (given['name'], {k: v for k, v in given.items() if k != 'name'})
  if (
    not isinstance(given, Sequence) or len(given) != 2 or not isinstance(given[0], str)
  ):
    raise InputError(
      f'{where}: got {given!r}, expected a name and its parameters',
      fix="write ('name', {...}), or a mapping with the key 'name'",
    )
  return given[0], make(given[0], given[1])


def _make(kind: str, known: Mapping[str, Any], name: str, params: Any) -> Any:
  if name not in known:
    raise InputError(
      f'unknown {kind} {name!r}',
      fix=f'use one of {", ".join(known)}{did_you_mean(name, known)}',
    )
  wanted = known[name].params
  if isinstance(params, wanted):
    return params
  if params is not None and not isinstance(params, Mapping):
    raise InputError(
      f'{kind} {name}: got parameters of type {type(params).__name__}',
      fix=f'pass a mapping of its fields, or a {wanted.__name__}',
    )
  return from_mapping(wanted, params or {}, f'{kind} {name}')


def from_mapping(kind: type, values: Mapping[str, Any], where: str) -> Any:
  """`kind(**values)`; unknown fields are refused with the nearest known one."""
  fields = {field.name: field for field in dataclasses.fields(kind)}
  unknown = [
    f'{name!r}{did_you_mean(name, fields)}' for name in values if name not in fields
  ]
  if unknown:
    raise InputError(
      f'{where}: unknown field', unknown, fix=f'known fields: {", ".join(fields)}'
    )
  wrong = [
    f'{name}: got {value!r} ({type(value).__name__}), expected {expected.__name__}'
    for name, value in values.items()
    for expected in (type(fields[name].default),)
    if expected in (int, float, str, bool) and not _fits(value, expected)
  ]
  if wrong:
    raise InputError(f'{where}: wrong type', wrong)
  lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
  return kind(**{**values, **lists})  # JSON has lists only


def _fits(value: Any, expected: type) -> bool:
  """Whether a field whose default is of type `expected` takes `value`."""
  if expected is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  return isinstance(value, expected) and (expected is bool or value is not True)


def did_you_mean(name: str, known: Any) -> str:
  """' (did you mean ...?)' where one of `known` is close to `name`."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f' (did you mean {near[0]!r}?)' if near else ''
