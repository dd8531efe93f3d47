"""--mergekit_yaml: a merge described by a configuration of mergekit."""

import pathlib
from collections.abc import Sequence
from typing import Any

import yaml
from absl import flags

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.cli.merge_flags import merge_values, plain_values
from resmerge_jax.config import config_from
from resmerge_jax.errors import InputError
from resmerge_jax.mergekit_yaml.translate import translate

SAID_THERE = ('base', 'experts', 'method', 'weights', 'output_dtype', 'shape')


def requested(argv: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The merge that the flags ask for, and notes on how its YAML file was read.

  `argv`: the words of the command line, to tell --config from its default. The merge is
  told as `config_from` takes it.

  Raises:
    InputError: a flag beside the file that says what the file says.
  """
  path = flags.FLAGS.mergekit_yaml
  if path is None:
    return merge_values(), ()
  given = [
    name for name in SAID_THERE if name in flags.FLAGS and flags.FLAGS[name].present
  ]
  given += sorted({w.split('=')[0].lstrip('-') for w in argv if _is_config(w)})
  if given:
    raise InputError(
      '--mergekit_yaml says this already, or says otherwise',
      [f'--{name}' for name in given],
      fix='leave these flags out, or leave --mergekit_yaml out',
    )
  try:
    values, notes = translate(load(path), _tensor_names)
    values = {**values, **plain_values()}
    config_from(values)
  except InputError as error:
    error.add_note(f'read from {path}')
    raise
  return values, notes


def _is_config(word: str) -> bool:
  return word.lstrip('-').split('=')[0].split('.')[0] == 'config' and word[:1] == '-'


def _tensor_names(folder: str) -> list[str]:
  return list(open_checkpoint(folder, role='base').tensors)


def load(path: str) -> Any:
  """The one document of a YAML file.

  Raises:
    InputError: no such file, no YAML, or a key given twice.
  """
  try:
    text = pathlib.Path(path).expanduser().read_text(encoding='utf-8')
    return yaml.load(text, _Loader)
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'--mergekit_yaml={path}: {error}') from None
  except yaml.YAMLError as error:
    raise InputError(
      f'--mergekit_yaml={path}: not a YAML file of one document: {error}'
    ) from None


class _Loader(yaml.SafeLoader):
  """Refuses keys given twice, of which YAML would take the last in silence."""

  def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
    mapping = super().construct_mapping(node, deep)
    keys = [self.construct_object(key, deep=True) for key, _ in node.value]
    twice = [key for at, key in enumerate(keys) if key in keys[:at]]
    if twice:
      raise yaml.constructor.ConstructorError(
        None, None, f'found {twice[0]!r} twice', node.start_mark
      )
    return mapping
