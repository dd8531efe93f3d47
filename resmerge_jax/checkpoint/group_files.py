"""Where an expert's config.json and tokenizer are not the base's: warnings."""

import hashlib

from resmerge_jax.checkpoint.files import File
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.model_config import config_differences
from resmerge_jax.errors import InputError

_COMPARED_FILES = (
  'tokenizer.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'tokenizer_config.json',
)


def config_warnings(base: Checkpoint, expert: Checkpoint, vocab: str) -> list[str]:
  """One warning per field of config.json that changes the computation."""
  return [
    f'expert {expert.id!r}: {field} of config.json is {there!r}, of the base {here!r}; '
    "the output has the base's"
    for field, here, there in config_differences(base.config, expert.config)
    if not (field == 'vocab_size' and vocab != 'error')  # said with its tensors
  ]


def tokenizer_differences(a: Checkpoint, b: Checkpoint) -> list[str]:
  """Tokenizer files that both folders have, with different bytes."""
  if a.path is None or b.path is None:
    return []
  return [
    name
    for name in _COMPARED_FILES
    if name in a.side_files
    and name in b.side_files
    and _sha256(a.path / name) != _sha256(b.path / name)
  ]


def tokenizer_warnings(base: Checkpoint, expert: Checkpoint) -> list[str]:
  """At most one warning, naming every file."""
  if differ := tokenizer_differences(base, expert):
    return [
      f"expert {expert.id!r}: {', '.join(differ)} differ from the base's; the output "
      "has the base's"
    ]
  return []


def _sha256(file: File) -> bytes:
  try:
    return hashlib.sha256(file.read_bytes()).digest()
  except OSError as error:
    raise InputError(f'{file}: cannot be read: {error.strerror}') from error
