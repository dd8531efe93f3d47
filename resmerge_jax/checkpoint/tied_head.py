"""Heads that are the embedding: stored or not, expert and base mean the same tensor."""

import re
from collections.abc import Collection

import numpy as np

from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.model_config import ties_embeddings
from resmerge_jax.checkpoint.reader import Reader, block_bytes
from resmerge_jax.errors import InputError

_BLOCK_ROWS = 4096  # compared at once


def find_head(checkpoint: Checkpoint) -> str | None:
  """The stored head of the model, None if it has none."""
  return _single(checkpoint, 'lm_head.weight')


def head_warnings(base: Checkpoint) -> list[str]:
  """A warning if what `base` stores of a head is not what its config.json says."""
  ties, head = ties_embeddings(base.config), find_head(base)
  if ties and head:
    return [
      f'base {base.id!r}: config.json ties the head to the embedding, but {head} is '
      'stored too: programs that tie ignore it'
    ]
  if ties is False and not head and _is_language_model(base):
    return [
      f'base {base.id!r}: config.json does not tie the head to the embedding, but no '
      'lm_head.weight is stored: the output has no head either'
    ]
  return []


def _is_language_model(checkpoint: Checkpoint) -> bool:
  named = checkpoint.config.get('architectures') or ()
  return any(re.search('CausalLM|LMHead|ConditionalGeneration', str(n)) for n in named)


def match_head(
  base: Checkpoint, expert: Checkpoint
) -> tuple[dict[str, str], frozenset[str], list[str]]:
  """Aliases of `expert`, its tensors to ignore, and warnings, about tied heads."""
  base_head, head = find_head(base), find_head(expert)
  base_ties, ties = ties_embeddings(base.config), ties_embeddings(expert.config)
  # Neither config says: both follow the default of their (equal) model type.
  same_default = (
    ties is base_ties is None
    and 'model_type' in base.config
    and base.config['model_type'] == expert.config.get('model_type')
  )
  if head and not base_head and base_ties is not False and (ties or same_default):
    warning = (
      f'expert {expert.id!r}: ignoring its {head}: its config.json ties the head to '
      'the embedding, as the base does'
    )
    return {}, frozenset({head}), [warning]
  if base_head and head and ties and not base_ties:
    warning = (
      f'expert {expert.id!r}: config.json ties the head to the embedding, but {head} is '
      'stored too: the stored one is taken'
    )
    return {}, frozenset(), [warning]
  embedding = _single(expert, 'embed_tokens.weight')
  if base_head and not head and ties and embedding:
    warning = (
      f'expert {expert.id!r}: {base_head} is not stored; its config.json ties the '
      f'head to the embedding, so {embedding} is taken'
    )
    return {base_head: embedding}, frozenset(), [warning]
  return {}, frozenset(), []


def check_ignored_head(
  expert: Checkpoint, ignored: Collection[str], reader: Reader
) -> None:
  """Reads a head that `match_head` left out, and the embedding.

  Raises:
    InputError: they differ: the head was trained apart, whatever config.json says.
  """
  head, embedding = find_head(expert), _single(expert, 'embed_tokens.weight')
  if head is None or head not in ignored or embedding is None:
    return
  ours, theirs = expert.tensors[head], expert.tensors[embedding]
  same = (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
  for start in range(0, ours.rows if same else 0, _BLOCK_ROWS):
    stop = min(start + _BLOCK_ROWS, ours.rows)
    begin, end = block_bytes(ours, start, stop)
    blocks = np.empty((2, end - begin), np.uint8)
    reader.read_into(ours, start, stop, blocks[0])
    reader.read_into(theirs, start, stop, blocks[1])
    same = same and np.array_equal(*blocks)
  if not same:
    raise InputError(
      f'expert {expert.id!r}: {head} is not {embedding}, though config.json ties them',
      why='the base has no head, so what was trained in this one would be lost',
      fix='pass --extra=ignore to leave it out',
    )


def _single(checkpoint: Checkpoint, ending: str) -> str | None:
  """The one tensor whose name ends in `ending`, None if there is none or several."""
  found = [n for n in checkpoint.tensors if n == ending or n.endswith(f'.{ending}')]
  return found[0] if len(found) == 1 else None
