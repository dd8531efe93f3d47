"""adapter_config.json of a LoRA adapter, as PEFT writes it (peft 0.21: LoraConfig).

What changes the computation and is not plain LoRA is refused by the name of its field.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from resmerge_jax.checkpoint.files import File
from resmerge_jax.checkpoint.json_object import load_json_object
from resmerge_jax.errors import InputError

CONFIG_NAME = 'adapter_config.json'
# Without effect on the merged weights, or seen in the tensors themselves.
_BENIGN = frozenset(
  {
    'auto_mapping',
    'base_model_name_or_path',
    'bias',  # the biases are stored as whole tensors
    'corda_config',
    'ensure_weight_tying',
    'eva_config',
    'exclude_modules',
    'fan_in_fan_out',
    'inference_mode',
    'init_lora_weights',
    'layers_pattern',
    'layers_to_transform',
    'loftq_config',
    'lora_alpha',
    'lora_dropout',
    'lora_ga_config',
    'megatron_core',  # the name of a package; `megatron_config` turns it on
    'modules_to_save',
    'peft_type',
    'peft_version',
    'qalora_group_size',
    'r',
    'rank_pattern',
    'alpha_pattern',
    'revision',
    'runtime_config',
    'target_modules',
    'target_modules_to_tie',
    'task_type',
    'use_rslora',
    'velora_config',  # concerns the backward pass
  }
)
_REFUSED = {
  'alora_invocation_tokens': 'aLoRA: the update depends on the tokens',
  'arrow_config': 'Arrow: the update depends on the input',
  'kasa_config': 'KaSA: it truncates the base',
  'layer_replication': 'replicated layers: another model than the base',
  'lora_bias': 'a bias of the update, which the base may have no tensor for',
  'megatron_config': 'Megatron: factors split over devices',
  'monteclora_config': 'MonteCLoRA: the update is random',
  'target_parameters': 'parameters without a module of their own',
  'trainable_token_indices': 'rows of the embedding, stored by token',
  'use_bdlora': 'BD-LoRA: block-diagonal factors',
  'use_dora': 'DoRA: it rescales the merged weights',
  'use_qalora': 'QA-LoRA: it pools the input of quantised layers',
}
_KEEPS_BASE = (True, False, None, 'gaussian', 'eva', 'orthogonal', 'mica')
_CHANGES_BASE = ('pissa', 'olora', 'corda', 'lora_ga', 'loftq')


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """What adapter_config.json says of the update scale * B A of each module."""

  rank: int
  alpha: float
  rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
  rank_stabilised: bool = False
  fan_in_fan_out: bool = False
  base_name: str = ''

  def rank_of(self, module: str) -> int:
    return _of_module(self.rank_pattern, module, self.rank)

  def scale_of(self, module: str) -> float:
    """alpha / r, or alpha / sqrt(r) where the rank is stabilised (arXiv 2312.03732)."""
    alpha, rank = (
      _of_module(self.alpha_pattern, module, self.alpha),
      self.rank_of(module),
    )
    return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _of_module(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
  """The first entry that matches, as PEFT matches: a path, its end, or a regex."""
  for key, value in pattern.items():
    if re.match(rf'(.*\.)?({key})$', module):
      return value
  return default


def read_adapter_config(file: File, who: str) -> tuple[AdapterConfig, bytes]:
  """The configuration in `file`, and its bytes.

  Raises:
    InputError: it cannot be read, is of another kind than LoRA, or has fields that are
      malformed or make more of the adapter than scale * B A.
  """
  try:
    raw = file.read_bytes()
    fields = load_json_object(raw)
  except OSError as error:
    raise InputError(
      f'{who}: {CONFIG_NAME} cannot be read: {error.strerror}'
    ) from error
  except ValueError as error:
    raise InputError(f'{who}: {CONFIG_NAME} is {error}') from error
  if fields.get('peft_type') != 'LORA':
    raise InputError(
      f'{who}: an adapter of peft_type {fields.get("peft_type")!r}, only LORA is known',
      fix=_MERGE_IT,
    )
  _check_features(fields, who)
  _check_start(fields.get('init_lora_weights'), who)
  _check_values(fields, who)
  config = AdapterConfig(
    rank=fields['r'],
    alpha=fields['lora_alpha'],
    rank_pattern=fields.get('rank_pattern') or {},
    alpha_pattern=fields.get('alpha_pattern') or {},
    rank_stabilised=fields.get('use_rslora') or False,
    fan_in_fan_out=fields.get('fan_in_fan_out') or False,
    base_name=fields.get('base_model_name_or_path') or '',
  )
  return config, raw


_MERGE_IT = (
  "merge the adapter into its base with PEFT's merge_and_unload(), save that with "
  'save_pretrained, and give the saved folder'
)


def _check_features(fields: Mapping[str, Any], who: str) -> None:
  problems = [
    f'{field} ({_REFUSED.get(field, "a field that is not known here")})'
    for field, value in sorted(fields.items())
    if field not in _BENIGN and value not in (None, False, '', [], {})
  ]
  if problems:
    raise InputError(
      f'{who}: {CONFIG_NAME} has fields that make it more than plain LoRA',
      problems,
      why='the change of a weight would not be scale * B A',
      fix=_MERGE_IT,
    )


def _check_start(start: Any, who: str) -> None:
  """Raises if training began from another base than the one that is stored."""
  if start in _KEEPS_BASE:
    return
  if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
    raise InputError(
      f'{who}: init_lora_weights is {start!r}, which changed the base before training',
      why='scale * B A is the change from that other base, not from the stored one',
      fix='convert it: save_pretrained(path_initial_model_for_weight_conversion=...) of '
      'PEFT; or ' + _MERGE_IT,
    )
  raise InputError(
    f'{who}: init_lora_weights is {start!r}, which is not known here', fix=_MERGE_IT
  )


def _check_values(fields: Mapping[str, Any], who: str) -> None:
  ranks = {'r': fields.get('r'), **_items(fields, 'rank_pattern')}
  alphas = {'lora_alpha': fields.get('lora_alpha'), **_items(fields, 'alpha_pattern')}
  problems = [
    f'{name}: got {value!r}, expected 1 or more'
    for name, value in ranks.items()
    if type(value) is not int or value < 1
  ]
  problems += [
    f'{name}: got {value!r}, expected a number'
    for name, value in alphas.items()
    if type(value) not in (int, float) or not math.isfinite(value)
  ]
  problems += [
    f'{name}: got {fields[name]!r}, expected true or false'
    for name in ('use_rslora', 'fan_in_fan_out')
    if fields.get(name) not in (None, True, False)
  ]
  for pattern in ('rank_pattern', 'alpha_pattern'):
    for key in fields.get(pattern) or {}:
      try:
        re.compile(str(key))
      except re.error as error:
        problems.append(f'{pattern}: {key!r} is no regular expression: {error}')
  if problems:
    raise InputError(f'{who}: {CONFIG_NAME} has malformed fields', problems)


def _items(fields: Mapping[str, Any], pattern: str) -> dict[str, Any]:
  found = fields.get(pattern) or {}
  if not isinstance(found, dict):
    return {pattern: found}
  return {f'{pattern}[{key!r}]': value for key, value in found.items()}
