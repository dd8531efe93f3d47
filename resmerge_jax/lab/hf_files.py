"""The tokenizer of a model as files that AutoTokenizer reads, and generation settings."""

import json
from typing import Any

import tokenizers


def hf_files(
  tokenizer: tokenizers.Tokenizer,
  config: dict[str, Any],
  special: dict[str, Any],
  generation: dict[str, Any],
) -> dict[str, bytes]:
  """Content of each file by its name. `special`: tokens by their role."""
  return {
    'tokenizer.json': tokenizer.to_str(pretty=True).encode(),
    'tokenizer_config.json': _json(config),
    'special_tokens_map.json': _json(special),
    'generation_config.json': _json(generation),
  }


def _json(value: dict[str, Any]) -> bytes:
  return (json.dumps(value, indent=2) + '\n').encode()
