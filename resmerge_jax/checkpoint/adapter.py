"""The tensors of a LoRA adapter beside those of its base: factors and whole tensors.

PEFT stores `base_model.model.MODULE.lora_A.weight` (r x in) and `lora_B.weight` (out x r),
for embeddings `lora_embedding_A` (r x tokens) and `lora_embedding_B` (features x r), and
what it saves whole (modules_to_save, biases, resized embeddings) under its own name.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from resmerge_jax.checkpoint.adapter_config import AdapterConfig
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.model_config import ties_embeddings
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.host_float import to_float32
from resmerge_jax.types import DTYPES, TensorRef

PREFIX = 'base_model.model.'
_FACTOR = re.compile(
  r'(?P<module>.+)\.(?:(?P<part>lora_[AB])\.weight|(?P<embedding>lora_embedding_[AB]))'
)


class Lora(NamedTuple):
  """The update scale * left @ right of one RxC tensor; left is RxF, right FxC.

  `transposed`: left and right are stored as their transposes.
  """

  left: TensorRef
  right: TensorRef
  transposed: bool
  scale: float

  @property
  def rank(self) -> int:
    """F."""
    return self.right.shape[1 if self.transposed else 0]


@dataclasses.dataclass(frozen=True)
class Matched:
  """An adapter seen from its base: updates and whole tensors by the base's names."""

  loras: Mapping[str, Lora]
  wholes: Mapping[str, str]
  problems: Sequence[str]
  warnings: Sequence[str]


def match_adapter(base: Checkpoint, adapter: Checkpoint) -> Matched:
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
  return Matched(loras, wholes, problems, _warnings(base, adapter, touched))


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


def read_left(
  reader: Reader, lora: Lora, row_start: int, row_stop: int, out_RxF: np.ndarray
) -> None:
  """Rows [row_start, row_stop) of scale * left as float32, into `out_RxF`."""
  n_rows = lora.left.shape[1 if lora.transposed else 0]
  if not lora.transposed:
    out_RxF[...] = _rows(reader, lora.left, row_start, row_stop)
  elif (row_start, row_stop) == (0, n_rows):
    out_RxF[...] = _rows(reader, lora.left, 0, lora.rank).T
  else:  # row f of what is stored is column f of left: read as one long column
    column = dataclasses.replace(lora.left, shape=(lora.left.size, 1))
    for f in range(lora.rank):
      at = f * n_rows
      out_RxF[:, f] = _rows(reader, column, at + row_start, at + row_stop)[:, 0]
  out_RxF *= np.float32(lora.scale)


def read_right(reader: Reader, lora: Lora, out_FxC: np.ndarray) -> None:
  """All of right as float32, into `out_FxC`."""
  stored = _rows(reader, lora.right, 0, lora.right.rows)
  out_FxC[...] = stored.T if lora.transposed else stored


def _rows(reader: Reader, ref: TensorRef, start: int, stop: int) -> np.ndarray:
  stored = np.empty((stop - start, ref.cols), DTYPES[ref.dtype])
  reader.read_into(ref, start, stop, stored.reshape(-1).view(np.uint8))
  return to_float32(stored)
