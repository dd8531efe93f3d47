"""Config files: where they lie, and reading them before any flag is parsed."""

import importlib.util
import json
import pathlib

import ml_collections

from resmerge_jax.errors import InputError
from resmerge_jax.parameters import did_you_mean


def take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
  """The last value given to --flag, and `argv` without it."""
  value, rest, words = None, argv[:1], iter(argv[1:])
  for word in words:
    if word in (f'--{flag}', f'-{flag}'):
      value = next(words, None)
      if value is None:
        raise InputError(f'--{flag} has no value')
    elif word.startswith((f'--{flag}=', f'-{flag}=')):
      value = word.split('=', 1)[1]
    else:
      rest.append(word)
  return value, rest


def config_folder() -> pathlib.Path:
  """Bundled configs: those of the clone, or those installed with the package."""
  package = pathlib.Path(__file__).resolve().parents[1]
  if (package.parent / 'pyproject.toml').is_file():
    return package.parent / 'configs'
  return package / 'configs'


def bundled_configs(lab: bool = False) -> list[str]:
  """Names that --config takes beside paths: of merges, or of the lab's groups."""
  names = sorted(path.stem for path in config_folder().glob('*.py'))
  return [name for name in names if name.startswith('lab_') == lab]


def load_config(spec: str, lab: bool = False) -> ml_collections.ConfigDict:
  """What `get_config()` of a file returns. `spec` is a path or a bundled name.

  Text after a colon is passed on: 'sweep.py:rank=2' calls get_config('rank=2'). The
  manifest.json of a merge stands for its configuration.
  """
  name, _, argument = spec.partition(':')
  path, bundled = pathlib.Path(name), bundled_configs(lab)
  if name in bundled:
    path = config_folder() / f'{name}.py'
  elif path.suffix == '.json' and path.is_file():
    return _load_json(path)
  elif not path.is_file():
    raise InputError(
      f'--config={spec}: no such file, and no bundled config of that name'
      + did_you_mean(name, bundled),
      fix=f'give a path, or one of {", ".join(bundled)}',
    )
  module_spec = importlib.util.spec_from_file_location('merge_config', path)
  assert module_spec is not None
  assert module_spec.loader is not None
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
  except Exception as error:
    raise InputError(
      f'--config={spec}: {path} fails: {type(error).__name__}: {error}'
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise InputError(
      f'--config={spec}: get_config() returns {type(config).__name__}',
      fix='return an ml_collections.ConfigDict',
    )
  return ml_collections.ConfigDict(config.to_dict())


def _load_json(path: pathlib.Path) -> ml_collections.ConfigDict:
  """The configuration in a manifest.json: the same merge again."""
  try:
    values = json.loads(path.read_bytes())['config']
    return ml_collections.ConfigDict(values)
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'--config={path}: not the manifest.json of a merge ({error!r})'
    ) from error
