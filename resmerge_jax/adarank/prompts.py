"""Unlabelled prompts of each expert, from a file of lines, and batches of them."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from resmerge_jax.checkpoint.json_object import load_json_object
from resmerge_jax.errors import InputError

TOKENIZER = 'tokenizer.json'
Encode = Callable[[str], list[int]]


class Batch(NamedTuple):
  """int32 tokens padded on the right, and how many each prompt has, for N experts."""

  tokens_NxBxT: Any
  lengths_NxB: Any


def read_prompts(
  path: str | pathlib.Path,
  experts: Sequence[str],
  base: pathlib.Path,
  vocab_size: int,
  longest: int,
) -> list[list[np.ndarray]]:
  """The prompts of each of the `experts`, int32 [t] each.

  A line is {"expert": ID, "ids": [...]} or {"expert": ID, "text": "..."}; text is
  encoded by tokenizer.json in the folder `base`, as that file says (no chat template).

  Raises:
    InputError: lines that are no prompts, an expert without one, tokens that the model
      has not, prompts of no or more than `longest` tokens, no tokenizer for texts.
  """
  path = pathlib.Path(path).expanduser()
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'prompts {path}: cannot be read: {error}') from None
  found: dict[str, list[np.ndarray]] = {expert: [] for expert in experts}
  problems, encode = [], None
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    entry = _entry(line)
    if entry is None or entry['expert'] not in found:
      what = 'no prompt' if entry is None else f'unknown expert {entry["expert"]!r}'
      problems.append(f'line {number}: {what}')
      continue
    ids = entry.get('ids')
    if ids is None:
      encode = encode or encoder(base)
      ids = encode(entry['text'])
    if not 0 < len(ids) <= longest:
      problems.append(f'line {number}: {len(ids)} tokens, expected 1 to {longest}')
    elif not 0 <= min(ids) <= max(ids) < vocab_size:
      problems.append(f'line {number}: a token outside 0 to {vocab_size - 1}')
    else:
      found[entry['expert']].append(np.array(ids, np.int32))
  problems += [f'expert {name!r}: no prompts' for name, own in found.items() if not own]
  if problems:
    raise InputError(
      f'prompts {path}: not what is expected',
      problems,
      fix='give every expert lines {"expert": ID, "text": "..."} or '
      f'{{"expert": ID, "ids": [...]}}; the experts are {", ".join(experts)}',
    )
  return list(found.values())


def encoder(base: pathlib.Path) -> Encode:
  """Text to tokens, by the model's own tokenizer.json.

  Raises:
    InputError: `tokenizers` is not installed, or there is no such file.
  """
  fix = 'or give the prompts as tokens, {"expert": ID, "ids": [...]}'
  try:
    import tokenizers  # an extra: only texts need it
  except ImportError:
    raise InputError(
      'prompts as text need the package tokenizers, which is not installed',
      fix=f"pip install '.[lab]', {fix}",
    ) from None
  file = base / TOKENIZER
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
  except Exception as error:  # its only class of errors
    raise InputError(
      f'prompts as text need {file}, which cannot be read: {error}',
      fix=f'copy it there, {fix}',
    ) from None
  return lambda text: tokenizer.encode(text).ids


def batches(
  prompts: Sequence[Sequence[np.ndarray]], size: int, seed: int
) -> Iterator[Batch]:
  """Endless: `size` prompts of each expert, each its own in a new order every round."""
  width = max(len(ids) for own in prompts for ids in own)
  rngs = [np.random.default_rng([seed, i]) for i in range(len(prompts))]
  orders = [_rounds(len(own), rng) for own, rng in zip(prompts, rngs, strict=True)]
  while True:
    tokens_NxBxT = np.zeros((len(prompts), size, width), np.int32)
    lengths_NxB = np.zeros((len(prompts), size), np.int32)
    for i, (own, order) in enumerate(zip(prompts, orders, strict=True)):
      for b in range(size):
        ids = own[next(order)]
        tokens_NxBxT[i, b, : len(ids)] = ids
        lengths_NxB[i, b] = len(ids)
    yield Batch(tokens_NxBxT, lengths_NxB)


def _rounds(count: int, rng: np.random.Generator) -> Iterator[int]:
  while True:
    yield from rng.permutation(count).tolist()


def _entry(line: str) -> Mapping[str, Any] | None:
  """A line with an expert and its tokens or text; None if it is anything else."""
  try:
    entry = load_json_object(line.encode(), [])
  except ValueError:
    return None
  ids, text = entry.get('ids'), entry.get('text')
  is_prompt = (ids is None) != (text is None) and (
    isinstance(text, str)
    or (isinstance(ids, list) and all(type(token) is int for token in ids))
  )
  is_named = entry.keys() <= {'expert', 'ids', 'text'}
  return (
    entry if is_prompt and is_named and isinstance(entry.get('expert'), str) else None
  )
