"""The tensors of a LoRA adapter beside those of its base: factors and whole tensors.

PEFT stores `base_model.model.MODULE.lora_A.weight` (r x in) and `lora_B.weight` (out x r),
for embeddings `lora_embedding_A` (r x tokens) and `lora_embedding_B` (features x r), and
what it saves whole (modules_to_save, biases, resized embeddings) under its own name.
"""

import re
from collections.abc import Mapping

from resmerge_jax.checkpoint.adapter_config import AdapterConfig
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.lora import Lora
from resmerge_jax.checkpoint.model_config import ties_embeddings
from resmerge_jax.checkpoint.name_match import Match
from resmerge_jax.checkpoint.summary import fold_names
from resmerge_jax.types import TensorRef

PREFIX = 'base_model.model.'
_FACTOR = re.compile(
  r'(?P<module>.+)\.(?:(?P<part>lora_[AB])\.weight|(?P<embedding>lora_embedding_[AB]))'
)


def match_adapter(base: Checkpoint, adapter: Checkpoint) -> Match:
  """Finds the base's tensor for every tensor of `adapter`; shapes of factors are checked.

  Those of whole tensors are not: vocabularies may differ.
  """
  config = adapter.adapter
  assert config is not None
  pairs: dict[str, dict[str, TensorRef]] = {}
  wholes, problems = {}, []
  for name, ref in adapter.tensors.items():
    local = name.removeprefix(PREFIX)
    found = _FACTOR.fullmatch(local)
    if local == name:
      problems.append(f'{name}: the name does not begin with {PREFIX}')
    elif found:
      part = found['part'] or found['embedding']
      pairs.setdefault(found['module'], {})[part] = ref
    elif re.search(r'\.lora_|\.modules_to_save\.', local):
      problems.append(f'{name}: no part of a plain LoRA adapter')
    else:
      wholes[local.replace('.base_layer.', '.')] = name
  problems += [
    f'{full}: {_absent(base, n)}' for n, full in wholes.items() if n not in base.tensors
  ]
  loras = {}
  for module, parts in pairs.items():
    target = f'{module}.weight'
    if target not in base.tensors:
      problems.append(f'{PREFIX}{module}: {_absent(base, target)}')
      continue
    whole = wholes.get(target)
    ref = adapter.tensors[whole] if whole else base.tensors[target]
    problem = _pair_problem(module, parts, ref, config)
    if problem:
      problems.append(f'{PREFIX}{module}: {problem}')
    else:
      loras[target] = _lora(module, parts, config)
  touched = {*loras, *wholes}
  return Match(
    aliases=wholes,
    ignored=(),
    absent=frozenset(),
    extra=(),
    warnings=tuple(_warnings(base, adapter, touched)),
    loras=loras,
    problems=tuple(problems),
  )


def _absent(base: Checkpoint, name: str) -> str:
  tied = ''
  if name.endswith('lm_head.weight') and ties_embeddings(base.config):
    tied = ' (its config.json ties the head to the embedding)'
  return f'the base has no tensor {name}{tied}'


def _is_transposed(parts: Mapping[str, TensorRef], config: AdapterConfig) -> bool:
  return 'lora_embedding_A' in parts or config.fan_in_fan_out


def _pair_problem(
  module: str, parts: Mapping[str, TensorRef], base: TensorRef, config: AdapterConfig
) -> str:
  """What is wrong with the factors of one module, '' if nothing."""
  names = sorted(parts)
  if names not in (['lora_A', 'lora_B'], ['lora_embedding_A', 'lora_embedding_B']):
    return f'{", ".join(names)} alone, expected one A and one B'
  a, b = (parts[name] for name in names)
  if not all(ref.is_float for ref in (a, b, base)):
    return f'{a.dtype} and {b.dtype} factors of a {base.dtype} tensor are not floats'
  shapes = f'{names[0]} is {list(a.shape)}, {names[1]} {list(b.shape)}'
  rank = config.rank_of(module)
  wanted = (b.shape[0], a.shape[1]) if len(a.shape) == len(b.shape) == 2 else None
  if _is_transposed(parts, config) and wanted:
    wanted = wanted[::-1]
  if wanted != base.shape:
    flag = '' if names[0] != 'lora_A' else (
      f' (fan_in_fan_out is {str(config.fan_in_fan_out).lower()})'
    )  # fmt: skip
    return f'{shapes}; their product does not fit {list(base.shape)}{flag}'
  if (a.shape[0], b.shape[1]) != (rank, rank):
    return f'{shapes}; adapter_config.json gives it rank {rank}'
  return ''


def _lora(module: str, parts: Mapping[str, TensorRef], config: AdapterConfig) -> Lora:
  a, b = (parts[name] for name in sorted(parts))
  scale = config.scale_of(module)
  if _is_transposed(parts, config):  # (B A)^T = A^T B^T
    return Lora(a, b, True, scale)
  return Lora(b, a, False, scale)


def _warnings(base: Checkpoint, adapter: Checkpoint, touched: set[str]) -> list[str]:
  config = adapter.adapter
  assert config is not None
  here = base.path.name if base.path else base.id
  named = config.base_name.rstrip('/').rpartition('/')[2]
  found = []
  if named and named != here:
    found.append(
      f'expert {adapter.id!r}: its base is called {config.base_name!r}, the base here '
      f'{here!r}; nothing but names and shapes tells whether they are the same'
    )
  embedding = next(
    (n for n in sorted(touched) if n.endswith('embed_tokens.weight')), ''
  )
  if (
    embedding and ties_embeddings(base.config) and 'lm_head.weight' not in base.tensors
  ):
    found.append(
      f'expert {adapter.id!r}: it changes {embedding}, to which the base ties its head: '
      "the head changes with it, as in PEFT's merge_and_unload()"
    )
  return found


def describe_adapter(base: Checkpoint, adapter: Checkpoint) -> list[str]:
  """Lines: which tensors of its base an adapter changes, and how."""
  match = match_adapter(base, adapter)
  kinds: dict[str, list[str]] = {}
  for name, lora in match.loras.items():
    kinds.setdefault(f'rank {lora.rank}, scale {lora.scale:g}', []).append(name)
  for name in match.aliases:
    kinds.setdefault('stored whole', []).append(name)
  lines = [
    f'  {kind}: {pattern}'
    for kind, of in kinds.items()
    for pattern, _ in fold_names(of)
  ]
  problems = [f'  problem: {text}' for text in match.problems]
  return [f'{adapter.id} on {base.id}', *lines, *problems]
