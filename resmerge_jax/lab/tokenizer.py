"""One character, one token, in Hugging Face's files.

It is a byte-level BPE without merges, as Qwen2's is one with many: transformers makes
a Qwen2 model's tokenizer from vocabulary and merges alone, whatever else the file says.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from resmerge_jax.lab import smollm2
from resmerge_jax.lab.examples import Example, Task
from resmerge_jax.lab.hf_files import hf_files

PAD, END = '<pad>', '<eos>'
PAD_ID, END_ID = 0, 1
_CHARACTERS = 'abcdefghijklmnopqrstuvwxyz0123456789MRTK+-=%?:(), .<>'
VOCAB_SIZE = 2 + len(_CHARACTERS)


@functools.cache
def tokenizer() -> tokenizers.Tokenizer:
  """Leaves out characters that it does not know; no task has any."""
  # Byte-level BPE writes the space as this letter.
  characters = _CHARACTERS.replace(' ', '\u0120')
  ids = {token: i for i, token in enumerate((PAD, END, *characters))}
  made = tokenizers.Tokenizer(models.BPE(ids, []))
  made.add_special_tokens([PAD, END])
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  made.decoder = decoders.ByteLevel()
  return made


def tokenizer_files(max_length: int) -> dict[str, bytes]:
  """The files that AutoTokenizer reads, and the generation settings."""
  config: dict[str, Any] = {
    'tokenizer_class': 'Qwen2Tokenizer',
    'model_max_length': max_length,
    'pad_token': PAD,
    'eos_token': END,
    'unk_token': None,
    'padding_side': 'left',
    'clean_up_tokenization_spaces': False,
  }
  generation = {'do_sample': False, 'eos_token_id': END_ID, 'pad_token_id': PAD_ID}
  special = {'pad_token': PAD, 'eos_token': END}
  return hf_files(tokenizer(), config, special, generation)


class Encoding(NamedTuple):
  """Tokens of texts; 0 is padding, which no text has."""

  tokenizer: tokenizers.Tokenizer
  end_id: int


def encoding_of(task: Task) -> Encoding:
  """That of the task's base."""
  if task.base:
    return Encoding(smollm2.tokenizer(), smollm2.config().eos_ids[0])
  return Encoding(tokenizer(), END_ID)


def prompt_ids(task: Task, examples: list[Example]) -> np.ndarray:
  """int32 [B, prompt_width], padded on the left."""
  encoding = encoding_of(task)
  rows = encoding.tokenizer.encode_batch([example.prompt for example in examples])
  out = np.full((len(rows), task.prompt_width), PAD_ID, np.int32)
  for row, found in zip(out, rows, strict=True):
    row[len(row) - len(found.ids) :] = found.ids
  return out


def answer_ids(task: Task, answers: list[str]) -> np.ndarray:
  """int32 [B, answer_width], each with its end, padded on the right."""
  encoding = encoding_of(task)
  rows = encoding.tokenizer.encode_batch(answers)
  out = np.full((len(rows), task.answer_width), PAD_ID, np.int32)
  for row, found in zip(out, rows, strict=True):
    row[: len(found.ids) + 1] = [*found.ids, encoding.end_id]
  return out


def ended_texts(task: Task, answers_BxG: np.ndarray) -> list[str | None]:
  """Answers as text; None: no end."""
  encoding, found = encoding_of(task), []
  for row in np.asarray(answers_BxG).tolist():
    ended = encoding.end_id in row
    ids = row[: row.index(encoding.end_id)] if ended else []
    text = encoding.tokenizer.decode(ids, skip_special_tokens=False)
    found.append(text if ended else None)
  return found


def text_of(ids: np.ndarray) -> str:
  """An answer as text, without its end and padding."""
  return tokenizer().decode([int(i) for i in ids], skip_special_tokens=True)
