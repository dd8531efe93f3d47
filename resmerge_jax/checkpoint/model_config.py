"""What two config.json files disagree about, once library versions are discounted."""

from collections.abc import Mapping
from typing import Any, NamedTuple

# Fields whose difference makes tensors differ, in the order in which to name them.
ARCHITECTURE_FIELDS = (
  'model_type',
  'architectures',
  'hidden_size',
  'num_hidden_layers',
  'intermediate_size',
  'num_attention_heads',
  'num_key_value_heads',
  'head_dim',
  'num_experts',
  'num_local_experts',
)
# Their defaults differ between models, so leaving one out may change the computation.
_NEEDED_FIELDS = frozenset(
  {
    'rope_theta',
    'rope_scaling',
    'rms_norm_eps',
    'layer_norm_epsilon',
    'sliding_window',
    'tie_word_embeddings',
    'num_attention_heads',
    'model_type',
  }
)
# Neither the weights nor the result of a forward pass depend on these.
_BENIGN_FIELDS = frozenset(
  {
    '_attn_implementation_autoset',
    '_name_or_path',
    'attention_dropout',
    'auto_map',
    'bos_token_id',
    'dtype',
    'eos_token_id',
    'initializer_range',
    'name_or_path',
    'pad_token_id',
    'torch_dtype',
    'transformers_version',
    'unsloth_fixed',
    'unsloth_version',
    'use_cache',
    'use_sliding_window',  # seen in sliding_window
  }
)


class FieldDifference(NamedTuple):
  """One field of config.json: its values here and there, None where it is absent."""

  field: str
  here: Any
  there: Any


def config_differences(
  here: Mapping[str, Any], there: Mapping[str, Any]
) -> list[FieldDifference]:
  """Fields that change the model, architecture first and then by name.

  A field that only one config has counts if other defaults would change the result:
  library versions write more or fewer of the rest. Of a multimodal model and one of
  language alone, the language parts are compared.
  """
  if ('text_config' in here) != ('text_config' in there):
    here, there = _language_part(here), _language_part(there)
  a, b = _normalise(here), _normalise(there)
  fields = [field for field in ARCHITECTURE_FIELDS if field in a or field in b]
  fields += sorted((a.keys() | b.keys()) - set(fields))
  return [
    FieldDifference(field, a.get(field), b.get(field))
    for field in fields
    if a.get(field) != b.get(field)
    and field not in _BENIGN_FIELDS
    and (field in _NEEDED_FIELDS or (field in a and field in b))
  ]


def ties_embeddings(config: Mapping[str, Any]) -> bool | None:
  """Whether the head is the embedding; None where the config does not say."""
  for part in (config, config.get('text_config')):
    if isinstance(part, Mapping) and isinstance(part.get('tie_word_embeddings'), bool):
      return part['tie_word_embeddings']
  return None


def _language_part(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of the language model, and those that all parts share."""
  part = config.get('text_config')
  return {**config, **part} if isinstance(part, Mapping) else dict(config)


def _normalise(config: Mapping[str, Any]) -> dict[str, Any]:
  """One spelling for what transformers 4 and 5 write differently."""
  fields = {name: value for name, value in config.items() if value is not None}
  rope = fields.pop('rope_parameters', None) or fields.pop('rope_scaling', None)
  if isinstance(rope, Mapping):
    rope = dict(rope)
    if 'rope_theta' in rope:
      fields['rope_theta'] = rope.pop('rope_theta')
    kind = rope.pop('rope_type', rope.pop('type', 'default'))
    if kind != 'default' or rope:
      fields['rope_scaling'] = {'rope_type': kind, **rope}
  if fields.get('use_sliding_window') is False:
    fields.pop('sliding_window', None)
  return fields
