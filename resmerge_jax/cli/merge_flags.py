"""Flags of `merge` and `plan`, and how they and a config file become a MergeConfig.

`--config` is read first, `--method` then replaces its method by that method's
defaults, `--config.field=value` overrides single fields, and the plain flags win.
"""

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from resmerge_jax.cli.app import define_expert_ids
from resmerge_jax.cli.config_file import bundled_configs, load_config, take
from resmerge_jax.config import MergeConfig, config_from
from resmerge_jax.config_checks import (
  EXTRA_POLICIES,
  MISSING_POLICIES,
  OUTPUT_DTYPES,
  VOCAB_POLICIES,
)
from resmerge_jax.errors import InputError
from resmerge_jax.methods.resmerge_params import FAMILY_SCALE
from resmerge_jax.methods.table import METHODS, POSTS
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.parameters import did_you_mean, make_method
from resmerge_jax.plan.orbax_files import OUTPUT_FORMATS
from resmerge_jax.trees.table import LAYOUTS

DEFAULT_CONFIG = 'resmerge'
FIELDS = (
  'base', 'experts', 'expert_ids', 'output', 'output_dtype', 'max_shard_size',
  'memory_budget', 'vocab', 'extra', 'missing', 'overwrite', 'seed', 'resume', 'weights', 'mesh',
  'whole_files', 'save_recipe', 'output_format', 'orbax_layout',
)  # fmt: skip


def define_flags(argv: list[str]) -> list[str]:
  """Defines all flags; returns `argv` without --config=NAME, which is read here.

  Raises:
    InputError: no such config or method, or an override of a field there is not.
  """
  chosen, rest = take(argv, 'config')
  method, _ = take(argv, 'method')
  config = load_config(chosen or DEFAULT_CONFIG)
  config.method = _complete_method(config.get('method', {}), method)
  config.outside = _settable(TaskArithmetic, config.get('outside', {}))
  _check_overrides(config, rest)
  config_flags.DEFINE_config_dict(
    'config',
    config,
    sys_argv=rest,
    help_string='config file (a path, a manifest.json, or a bundled name: '
    f'{", ".join(bundled_configs())}), default {DEFAULT_CONFIG}. '
    '--config.method.rho=0.3 overrides one field',
  )
  _define_plain_flags()
  return rest


def _define_plain_flags() -> None:
  flags.DEFINE_string(
    'mergekit_yaml',
    None,
    'configuration of mergekit to take base, experts, method, weights and dtype from',
  )
  flags.DEFINE_string(
    'base',
    None,
    'folder of the base model, or its address: gs://, s3://, hf://OWNER/NAME[@REVISION]',
  )
  flags.DEFINE_list(
    'experts', None, 'folders or addresses of the experts, comma-separated'
  )
  define_expert_ids()
  flags.DEFINE_string('output', None, 'folder to write; must not exist or be empty')
  flags.DEFINE_enum(
    'method', None, sorted(METHODS), "method, with its defaults (default: the config's)"
  )
  flags.DEFINE_list(
    'weights',
    None,
    'one weight per expert, for methods that take them; 0:0.5:1 is spread over the depth',
  )
  flags.DEFINE_multi_string(
    'post',
    None,
    f'post-processor ({", ".join(sorted(POSTS))}) with its parameters, such as '
    'lines:alpha=0.4,beta=0.6; again for the next one',
  )
  flags.DEFINE_enum(
    'output_dtype',
    None,
    OUTPUT_DTYPES,
    'dtype of the floating tensors written; base keeps each (default: bfloat16)',
  )
  flags.DEFINE_enum(
    'output_format',
    None,
    OUTPUT_FORMATS,
    'orbax: OUTPUT is an Orbax checkpoint; both: one is in OUTPUT/orbax '
    '(default: safetensors)',
  )
  flags.DEFINE_enum(
    'orbax_layout',
    None,
    list(LAYOUTS),
    'tree of the Orbax checkpoint: hf has a leaf per tensor, the others are those of a '
    'training stack (default: hf)',
  )
  flags.DEFINE_string(
    'max_shard_size',
    None,
    "largest weight file, such as 5GB (default: the base's own files)",
  )
  flags.DEFINE_string(
    'memory_budget',
    None,
    'memory of this process, such as 4GiB (default: 2GiB, or what the largest matrix needs)',
  )
  flags.DEFINE_enum(
    'vocab',
    None,
    VOCAB_POLICIES,
    'what to do with vocabularies of different size (default: error)',
  )
  flags.DEFINE_enum(
    'extra',
    None,
    EXTRA_POLICIES,
    'what to do with tensors of an expert that the base does not have (default: error)',
  )
  flags.DEFINE_enum(
    'missing',
    None,
    MISSING_POLICIES,
    'what to do where an expert lacks a tensor; base: it counts as unchanged '
    '(default: error)',
  )
  flags.DEFINE_boolean(
    'overwrite', None, 'replace a non-empty output once the new one is complete'
  )
  flags.DEFINE_boolean(
    'resume',
    None,
    'continue this merge where it stopped; verify the output if it is complete',
  )
  flags.DEFINE_boolean(
    'whole_files',
    None,
    'each process writes weight files of its own, for object stores and other storage '
    'that does not let several write to one file',
  )
  flags.DEFINE_boolean(
    'save_recipe',
    None,
    'also write OUTPUT/recipe: coefficients and low-rank factors from which base and '
    'experts give the merge again without an SVD (tools.apply_recipe)',
  )
  flags.DEFINE_string(
    'mesh',
    None,
    'devices along layers and rows, such as layer:4,row:2 '
    '(default: chosen for each step)',
  )
  flags.DEFINE_integer(
    'seed', None, 'of the random start of the head solver (default: 0)'
  )


def merge_config(given: Mapping[str, Any] | None = None) -> MergeConfig:
  """The configuration that the parsed flags describe, with the fields `given`."""
  return config_from({**merge_values(), **(given or {})})


def merge_values() -> dict[str, Any]:
  """What the parsed flags say, as `config_from` takes it."""
  values = flags.FLAGS.config.to_dict()
  if flags.FLAGS.method not in (None, values['method']['name']):
    raise InputError(
      f'--method={flags.FLAGS.method} came from a flag file, too late to be used',
      fix='give --method and --config on the command line itself',
    )
  return {**values, **plain_values()}


def plain_values() -> dict[str, Any]:
  """Fields of the configuration that plain flags set."""
  values: dict[str, Any] = {}
  for name in FIELDS:
    value = flags.FLAGS[name].value
    if value is not None:
      values[name] = value
    if isinstance(value, list) and '' in value:
      raise InputError(f'--{name}: an empty item in {",".join(value)!r}')
  if 'weights' in values:
    values['weights'] = [_weight(text) for text in values['weights']]
  if flags.FLAGS.post:
    values['post'] = [_post(text) for text in flags.FLAGS.post]
  return values


def _weight(text: Any) -> float | list[float]:
  """A number, or several between colons."""
  if not isinstance(text, str):
    return text
  try:
    numbers = [float(part) for part in text.split(':')]
  except ValueError:
    raise InputError(
      f'weights: got {text!r}, expected a number, or numbers between colons'
    ) from None
  return numbers if len(numbers) > 1 else numbers[0]


def _post(text: str) -> tuple[str, dict[str, Any]]:
  """('lines', {'alpha': 0.4}) of 'lines:alpha=0.4'; values are Python literals."""
  name, _, given = text.partition(':')
  values = dict(re.findall(r'(\w+)=((?:[(\[][^)\]]*[)\]]|[^,])+)', given))
  try:
    return name, {key: ast.literal_eval(value) for key, value in values.items()}
  except (ValueError, SyntaxError):
    raise InputError(
      f'--post={text}: got values that are no numbers',
      fix='write --post=lines:alpha=0.4,beta=0.6',
    ) from None


def _complete_method(given: Any, chosen: str | None) -> ml_collections.ConfigDict:
  """The method's fields with defaults filled in, so that each can be overridden."""
  values = dict(given) if chosen is None else {'name': chosen}
  name = values.pop('name', 'resmerge')
  fields = vars(make_method(name, values))
  complete = ml_collections.ConfigDict(
    {
      'name': name,
      **{k: v for k, v in fields.items() if not isinstance(v, tuple | None)},
    }
  )
  if 'family_scale' in fields:
    complete.family_scale = _settable(FAMILY_SCALE['paper'], values.get('family_scale'))
  return complete


def _settable(fields: Any, given: Any) -> ml_collections.ConfigDict:
  """Fields that stay unset (None) unless the config file or a flag sets them."""
  if isinstance(fields, type):
    fields = {field.name: field.default for field in dataclasses.fields(fields)}
  unset = {k: config_dict.placeholder(type(v)) for k, v in fields.items()}
  settable = ml_collections.ConfigDict(unset)
  settable.update(dict(given or {}))
  return settable


def _check_overrides(config: ml_collections.ConfigDict, argv: list[str]) -> None:
  """Refuses --config.x.y where the config has no such field; all at once."""
  unknown = []
  for word in argv[1:]:
    text = word.split('=', 1)[0].lstrip('-')
    if not word.startswith('-') or not text.startswith('config.'):
      continue
    place: Any = config
    for part in text.split('.')[1:]:
      if not isinstance(place, ml_collections.ConfigDict) or part not in place:
        known = list(place) if isinstance(place, ml_collections.ConfigDict) else []
        unknown.append(f'--{text}: no field {part!r}{did_you_mean(part, known)}')
        break
      place = place[part]
  if unknown:
    raise InputError(
      'unknown config field',
      unknown,
      fix=f'fields: {", ".join(config)}; of config.method: {", ".join(config.method)}; '
      'base, experts, output, vocab and sizes are plain flags',
    )
