"""DecoderConfig from the contents of a config.json and back.

Every attribute is in one of these tables or refused: an unknown one may change the
computation. Attributes that are null are as if they were absent.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.models.config import FAMILIES, DecoderConfig, Llama3Scaling

_NEEDED = (
  'vocab_size',
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'max_position_embeddings',
  'rms_norm_eps',
)
# The defaults of all three families: published configs leave these out.
_DEFAULTS = {
  'tie_word_embeddings': False,
  'attention_bias': False,
  'mlp_bias': False,
  'initializer_range': 0.02,
}
# The computation does not depend on these.
_HARMLESS = frozenset(
  {
    '_attn_implementation',
    '_attn_implementation_autoset',
    '_name_or_path',
    'bos_token_id',
    'dtype',
    'name_or_path',
    'output_attentions',
    'output_hidden_states',
    'pad_token_id',
    'pretraining_tp',  # slices the same products
    'return_dict',
    'tokenizer_class',
    'torch_dtype',
    'transformers_version',
    'unsloth_fixed',
    'unsloth_version',
    'use_cache',
  }
)
# Attributes that have a value with which they change nothing, and what they say else.
_NEUTRAL: dict[str, tuple[Callable[[Any], bool], str]] = {
  'attention_dropout': (lambda v: v == 0, 'this decoder has no dropout'),
  'auto_map': (lambda v: not v, 'the model has code of its own'),
  'hidden_act': (lambda v: v == 'silu', 'only silu is computed'),
  'is_causal': (lambda v: v is True, 'only causal attention is computed'),
  'is_encoder_decoder': (lambda v: v is False, 'not a decoder alone'),
  'num_experts': (lambda v: v == 0, 'a mixture of experts'),
  'num_local_experts': (lambda v: v == 0, 'a mixture of experts'),
  'partial_rotary_factor': (lambda v: v == 1, 'whole heads are rotated'),
  'quantization_config': (lambda v: not v, 'quantised'),
  'use_mrope': (lambda v: v is False, 'positions have one part'),
}
_ROPE_KEYS = {
  'default': frozenset[str](),
  'llama3': frozenset(f.name for f in dataclasses.fields(Llama3Scaling)),
}
_READ = {
  'model_type', 'architectures', 'eos_token_id', 'head_dim', 'num_key_value_heads',
  'rope_theta', 'rope_scaling', 'rope_parameters', 'layer_types', 'sliding_window',
  'use_sliding_window', 'max_window_layers', *_NEEDED, *_DEFAULTS,
}  # fmt: skip


def config_from_hf(
  config: Mapping[str, Any], who: str = 'config.json'
) -> DecoderConfig:
  """The decoder that a config.json describes; `who` is what errors call it.

  Understands `rope_parameters` of transformers 5, and `rope_theta` with `rope_scaling`
  of older versions.

  Raises:
    InputError: attributes that are missing, or that this decoder does not compute; all
      of them, by name.
  """
  given = {name: value for name, value in config.items() if value is not None}
  problems = _refusals(given)
  rope = _rope(given, problems)
  sizes = _sizes(given, problems)
  eos = given.get('eos_token_id', ())
  eos_ids = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
  if not all(type(token) is int for token in eos_ids):
    problems.append(f'eos_token_id {eos!r}: not a token or a list of tokens')
  if problems:
    raise InputError(
      f'{who}: not a model that this decoder computes',
      problems,
      why='it would load, and compute something else than the model',
      fix='an attribute that does not change the computation can be taken out of '
      'config.json',
    )
  values = {name: given.get(name, default) for name, default in _DEFAULTS.items()}
  try:
    return DecoderConfig(
      model_type=given['model_type'], **sizes, **rope, **values, eos_ids=eos_ids
    )
  except InputError as error:
    raise InputError(f'{who}: {error.what}', error.problems) from None


def config_to_hf(config: DecoderConfig, dtype: str) -> dict[str, Any]:
  """A config.json that every version of transformers understands.

  `dtype` is what its weights are stored in: 'bfloat16'. Special tokens other than the
  end of text are not known here.
  """
  found = dataclasses.asdict(config)
  eos_ids = found.pop('eos_ids')
  if found['rope_scaling']:
    found['rope_scaling'] |= {'rope_type': 'llama3'}
  if config.model_type != 'llama':
    del found['mlp_bias']
    found['use_sliding_window'] = False
  if config.model_type == 'qwen2':
    del found['attention_bias']
  found |= {
    'architectures': [FAMILIES[config.model_type]],
    'attention_dropout': 0.0,
    'bos_token_id': None,  # the default of Llama would be 1
    'eos_token_id': eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
    'hidden_act': 'silu',
    'torch_dtype': dtype,
    'use_cache': True,
  }
  return dict(sorted(found.items()))


def _refusals(given: Mapping[str, Any]) -> list[str]:
  """What the attributes say, one by one, that cannot be computed."""
  kind = given.get('model_type')
  problems = []
  if kind not in FAMILIES:
    problems.append(f'model_type {kind!r}: not one of {", ".join(FAMILIES)}')
  elif given.get('architectures', [FAMILIES[kind]]) != [FAMILIES[kind]]:
    problems.append(f'architectures {given["architectures"]}: not {FAMILIES[kind]}')
  for name, value in given.items():
    if name in _NEUTRAL:
      is_neutral, why = _NEUTRAL[name]
      if not is_neutral(value):
        problems.append(f'{name} {value!r}: {why}')
    elif name not in _READ and name not in _HARMLESS:
      problems.append(f'{name} {value!r}: not known to this decoder')
  layers = given.get('layer_types', [])
  if not isinstance(layers, list) or any(kind != 'full_attention' for kind in layers):
    problems.append(f'layer_types {layers!r}: only full_attention is computed')
  return problems + _sliding(given)


def _sliding(given: Mapping[str, Any]) -> list[str]:
  """A sliding window, where some layer has it."""
  window = given.get('sliding_window')
  if given.get('model_type') == 'llama':  # it would not be used, and was meant
    used = window is not None
  else:
    n_layers = given.get('num_hidden_layers')
    first = given.get('max_window_layers', 28)  # the default of both families
    none = type(first) is type(n_layers) is int and first >= n_layers
    used = bool(given.get('use_sliding_window') and window) and not none
  text = f'sliding_window {window}: every layer sees all tokens before'
  return [text] if used else []


def _sizes(given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """The sizes, those that a family derives from others included."""
  needed = list(_NEEDED)
  if given.get('model_type') != 'llama':
    needed.append('num_key_value_heads')
  if given.get('model_type') == 'qwen3':
    needed.append('head_dim')
  if missing := [name for name in needed if name not in given]:
    problems += [f'{name}: missing' for name in missing]
    return {}
  heads, hidden = given['num_attention_heads'], given['hidden_size']
  found = {name: given[name] for name in _NEEDED}
  found['num_key_value_heads'] = given.get('num_key_value_heads', heads)
  found['head_dim'] = given.get('head_dim')
  if found['head_dim'] is None:
    if type(heads) is not int or type(hidden) is not int or heads < 1 or hidden % heads:
      problems.append(f'head_dim: missing, and hidden_size {hidden} / {heads} heads')
    else:
      found['head_dim'] = hidden // heads
  return found


def _rope(given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """`rope_theta` and `rope_scaling`, from whichever attributes hold them."""
  spelled = [name for name in ('rope_parameters', 'rope_scaling') if name in given]
  if len(spelled) == 2 and given['rope_parameters'] != given['rope_scaling']:
    problems.append('rope_parameters and rope_scaling: not the same')
  where = spelled[0] if spelled else 'rope_scaling'
  rope = given.get(where, {})
  if not isinstance(rope, Mapping):
    problems.append(f'{where} {rope!r}: not an object')
    return {}
  rope = {name: value for name, value in rope.items() if value is not None}
  top = given.get('rope_theta')
  theta = rope.pop('rope_theta', top)
  if top is not None and theta != top:
    problems.append(f'rope_theta {top}: {where} says {theta}')
  if rope.pop('partial_rotary_factor', 1) != 1:
    problems.append(f'{where}.partial_rotary_factor: whole heads are rotated')
  old = rope.pop('type', 'default')  # the name before rope_type
  kind = rope.pop('rope_type', old)
  if not isinstance(kind, str) or kind not in _ROPE_KEYS:
    problems.append(f'{where}.rope_type {kind!r}: not one of {", ".join(_ROPE_KEYS)}')
    return {}
  extra, missing = rope.keys() - _ROPE_KEYS[kind], _ROPE_KEYS[kind] - rope.keys()
  problems += [
    f'{where}.{name} {rope[name]!r}: not of {kind}' for name in sorted(extra)
  ]
  problems += [f'{where}.{name}: missing' for name in sorted(missing)]
  if extra or missing:
    return {}
  return {
    'rope_theta': 10000.0 if theta is None else theta,  # the default of all families
    'rope_scaling': Llama3Scaling(**rope) if kind == 'llama3' else None,
  }
