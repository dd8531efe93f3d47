"""A small byte-level BPE tokenizer, written by hand, in Hugging Face's files.

Every text can be encoded and comes back unchanged: the 256 bytes are tokens, and
merges only join them. All model shapes share it; its ids fit a vocabulary of 512.
"""

from typing import Any

# Each word brings the merges of its prefixes: ' the' gives ' t', ' th', ' the'.
_WORDS = (
  ' the', ' and', ' of', ' to', ' in', ' is', ' that', ' for', ' with', ' as', ' are',
  ' be', ' you', ' we', ' this', ' from', ' have', ' not', ' can', ' will', ' one',
  ' if', ' then', ' return', ' def', ' print', ' call', ' tool', ' code', ' let',
  ' sum', ' answer', 'ing', 'tion', 'ent', 'er', 'ly', 'ed', 'es', 'user', 'system',
  'assistant', '  ', '\n\n', '==', '10', '()',
)  # fmt: skip
ROWS = 512  # of the smallest vocabulary whose embedding has a row for every id
_SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')

CHAT_TEMPLATE = (
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _byte_letters() -> dict[int, str]:
  """GPT-2's printable letter for every byte: itself, or one from 256 on if unprintable."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  letters = {byte: chr(byte) for byte in printable}
  return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _merges() -> list[tuple[str, str]]:
  letters = _byte_letters()
  words = [''.join(letters[byte] for byte in word.encode()) for word in _WORDS]
  pairs = [(word[:i], word[i]) for word in words for i in range(1, len(word))]
  return list(dict.fromkeys(pairs))


def _vocabulary() -> dict[str, int]:
  letters = sorted(_byte_letters().values())
  tokens = [*letters, *(left + right for left, right in _merges()), *_SPECIALS]
  return {token: i for i, token in enumerate(tokens)}


_VOCABULARY = _vocabulary()
END_OF_TEXT_ID, _, END_OF_TURN_ID = (_VOCABULARY[token] for token in _SPECIALS)


def _special(token: str) -> dict[str, Any]:
  flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
  return {'content': token, **flags, 'special': True}


def tokenizer_files() -> dict[str, dict[str, Any]]:
  """File name -> content of the tokenizer's JSON files, as AutoTokenizer reads them."""
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': True,
    'use_regex': True,
  }
  added = {_VOCABULARY[token]: _special(token) for token in _SPECIALS}
  roles = {'eos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>'}
  return {
    'tokenizer.json': {
      'version': '1.0',
      'truncation': None,
      'padding': None,
      'added_tokens': [{'id': i, **token} for i, token in added.items()],
      'normalizer': None,
      'pre_tokenizer': byte_level,
      'post_processor': None,
      'decoder': byte_level,
      'model': {
        'type': 'BPE',
        'dropout': None,
        'unk_token': None,
        'continuing_subword_prefix': None,
        'end_of_word_suffix': None,
        'fuse_unk': False,
        'byte_fallback': False,
        'vocab': {t: i for t, i in _VOCABULARY.items() if t not in _SPECIALS},
        'merges': [f'{left} {right}' for left, right in _merges()],
      },
    },
    'tokenizer_config.json': {
      'added_tokens_decoder': {str(i): token for i, token in added.items()},
      'additional_special_tokens': ['<|im_start|>', '<|im_end|>'],
      'chat_template': CHAT_TEMPLATE,
      'clean_up_tokenization_spaces': False,
      'model_max_length': 32768,
      'tokenizer_class': 'PreTrainedTokenizerFast',
      **roles,
    },
    'special_tokens_map.json': {
      'additional_special_tokens': ['<|im_start|>', '<|im_end|>'],
      **roles,
    },
  }
