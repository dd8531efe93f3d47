"""The settings of a sweep: a configuration with some fields replaced, and their names."""

import ast
import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from resmerge_jax.config import MergeConfig, config_from
from resmerge_jax.errors import InputError

SWEPT = 'method.FIELD, post.NAME.FIELD, outside.FIELD, weights, seed'
LONGEST = 200  # of a folder's name: file systems take 255, and parts are added to it
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')


def settings_of(
  values: Mapping[str, Any], sweeps: Sequence[str], named: Mapping[str, Any]
) -> dict[str, MergeConfig]:
  """Every combination of the swept values, by the name of its folder.

  Args:
    values: what `config_from` takes; `output` is the folder of all settings.
    sweeps: lists such as 'method.rho=0.1,0.2'.
    named: settings by name, as nested fields ({'full': {}, 'a': {'method': {'rho': 0}}}).

  Raises:
    InputError: a field that cannot be swept, a list that cannot be read, two settings
      that are the same, or what `config_from` refuses.
  """
  lists = [_parsed(text) for text in sweeps]
  paths = [path for path, _ in lists]
  if twice := sorted({path for path in paths if paths.count(path) > 1}):
    raise InputError(
      'fields swept twice', twice, fix='give all values in one list: --sweep a=1,2,3'
    )
  axes: list[list[tuple[str, dict[str, Any]]]] = []
  if named:
    axes.append([(name, dict(_flat(fields))) for name, fields in named.items()])
  for path, found in lists:
    label = _label(path, paths)
    axes.append([(f'{label}-{_text(value)}', {path: value}) for value in found])
  _check_paths({path for axis in axes for _, given in axis for path in given})
  settings: dict[str, MergeConfig] = {}
  for chosen in itertools.product(*axes):
    name = '__'.join(label for label, _ in chosen)
    given = {path: value for _, each in chosen for path, value in each.items()}
    _check_name(name, settings)
    settings[name] = _configured(values, name, given)
  _check_different(settings)
  return settings


def _parsed(text: str) -> tuple[str, list[Any]]:
  """('method.rho', [0.1, 0.2]) of 'method.rho=0.1,0.2'."""
  path, equals, given = text.partition('=')
  words = given.split(',')
  if not equals or not path or '' in words:
    raise InputError(
      f'--sweep {text}: expected a field and its values',
      fix='write --sweep method.rho=0.1,0.2,0.3',
    )
  return path, [_weights(word) if path == 'weights' else _value(word) for word in words]


def _value(word: str) -> Any:
  try:
    return ast.literal_eval(word)
  except (ValueError, SyntaxError):
    return word


def _weights(word: str) -> list[Any]:
  """[1, 2] of '1/2', one per expert; 0:1 is spread over the depth."""
  return [
    [_value(part) for part in weight.split(':')] if ':' in weight else _value(weight)
    for weight in word.split('/')
  ]


def _flat(fields: Mapping[str, Any], before: str = '') -> list[tuple[str, Any]]:
  """Paths and values of nested fields."""
  found: list[tuple[str, Any]] = []
  for name, value in fields.items():
    path = f'{before}{name}'
    found += _flat(value, f'{path}.') if isinstance(value, Mapping) else [(path, value)]
  return found


def _check_paths(paths: set[str]) -> None:
  wrong = []
  for path in sorted(paths):
    root, *rest = path.split('.')
    fits = {'method': len(rest) > 0, 'outside': len(rest) == 1, 'post': len(rest) == 2}
    fits |= {'weights': not rest, 'seed': not rest}
    if not fits.get(root) or '' in rest or path == 'method.name':
      wrong.append(path)
  if wrong:
    raise InputError(
      'fields that cannot be swept',
      wrong,
      why='all settings share one plan and one reading of the weights',
      fix=f'sweep {SWEPT}; for anything else run merges of their own',
    )


def _label(path: str, paths: Sequence[str]) -> str:
  """The last part of a path, or all of it where that is not enough."""
  last = path.rpartition('.')[2]
  same = [other for other in paths if other.rpartition('.')[2] == last]
  return last if len(same) == 1 else path


def _text(value: Any) -> str:
  """A value in a folder's name: letters, digits, and . _ - (m for minus)."""
  text = '_'.join(map(_text, value)) if isinstance(value, list) else str(value)
  return re.sub(r'[^A-Za-z0-9._-]', '_', re.sub(r'^-', 'm', text))


def _check_name(name: str, others: Mapping[str, Any]) -> None:
  problem = ''
  if not _NAME.fullmatch(name):
    problem = 'has other characters than letters, digits, and . _ -'
  elif len(name) > LONGEST:
    problem = f'has more than {LONGEST} characters'
  elif name.casefold() in {other.casefold() for other in others}:
    problem = 'stands for two settings'
  if problem:
    raise InputError(
      f'setting {name!r} of the sweep: its name, which its folder gets, {problem}',
      fix='give each value once; a config file can name settings (configs/ablations.py)',
    )


def _configured(
  values: Mapping[str, Any], name: str, given: Mapping[str, Any]
) -> MergeConfig:
  own = copy.deepcopy(dict(values))
  if own.get('output'):
    own['output'] = f'{str(own["output"]).rstrip("/")}/{name}'
  for path, value in given.items():
    _put(own, path.split('.'), value)
  try:
    return config_from(own)
  except InputError as error:
    if given:
      error.add_note(f'in setting {name!r} of the sweep')
    raise


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
  """Sets a nested field."""
  if path[0] == 'post':
    values['post'] = _posts(values.get('post') or (), path, value)
    return
  place = values
  for part in path[:-1]:
    place[part] = dict(place.get(part) or {})
    place = place[part]
  place[path[-1]] = value


def _posts(posts: Sequence[Any], path: Sequence[str], value: Any) -> list[Any]:
  """The post-processors, with a parameter of the one of that name replaced."""
  _, name, field = path
  found = [_post(post) for post in posts]
  fields = [fields for other, fields in found if other == name]
  if len(fields) != 1:
    raise InputError(
      f'--sweep {".".join(path)}: {len(fields)} post-processors named {name!r} are given',
      fix=f'give it once: --post={name}:{field}=...',
    )
  fields[0][field] = value
  return found


def _post(post: Any) -> tuple[str, dict[str, Any]]:
  if isinstance(post, str):
    return post, {}
  if isinstance(post, Mapping):
    return post['name'], {k: v for k, v in post.items() if k != 'name'}
  return post[0], dict(post[1])


def _check_different(settings: Mapping[str, MergeConfig]) -> None:
  """Refuses two settings that are one merge."""
  seen: dict[Any, str] = {}
  for name, config in settings.items():
    same = seen.setdefault(
      (config.method, config.post, config.outside, str(config.weights), config.seed),
      name,
    )
    if same != name:
      raise InputError(
        f'settings {same!r} and {name!r} of the sweep are the same merge',
        fix='leave one of them out',
      )
