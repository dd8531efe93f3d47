"""Folders, dtypes and tokenizers of a mergekit configuration."""

import pathlib
from collections.abc import Mapping
from typing import Any

from resmerge_jax.checkpoint.remote import scheme_of
from resmerge_jax.errors import InputError
from resmerge_jax.mergekit_yaml.keys import expect, get, refuse

DTYPES = ('bfloat16', 'float16', 'float32')


def local_folder(value: Any, where: str) -> str:
  """The folder that a reference to a model names; relative to the working directory.

  An address (gs://, s3://, hf://), which mergekit does not know, stays as it is.

  Raises:
    InputError: it names a LoRA, a model of the hub without hf://, or nothing at all.
  """
  if not isinstance(value, str):
    raise InputError(
      f'{where}: got {value!r}, expected the folder of a model',
      fix='write - model: path/to/folder',
    )
  if '+' in value:
    raise refuse(
      where,
      value,
      'in mergekit the part after + is a LoRA, which is not applied here',
      'merge it into its model first (PeftModel.merge_and_unload), or rename the folder',
    )
  if scheme_of(value):
    return value
  path = pathlib.Path(value).expanduser()
  if not path.is_dir():
    raise refuse(
      where,
      value,
      'there is no such folder, and models of the hub are not fetched unasked',
      f'write hf://{value}, or fetch it first (hf download {value.partition("@")[0]} '
      '--local-dir FOLDER) and write FOLDER',
    )
  return str(path)


def output_dtype(document: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
  """The dtype to write, and notes."""
  names = {}
  for key in ('dtype', 'out_dtype'):
    if document.get(key) is not None:
      names[key] = get(document, key, str).removeprefix('torch.')
      if names[key] not in DTYPES:
        raise refuse(
          key,
          document[key],
          'such weights are not written here',
          f'use one of {", ".join(DTYPES)}',
        )
  notes: tuple[str, ...] = ()
  if names.get('dtype', 'float32') != 'float32':
    notes = (
      f'dtype {names["dtype"]}: mergekit computes in it; here weights are read as they '
      'are stored, computed with in float32 and rounded once',
    )
  return names.get('out_dtype', names.get('dtype', 'base')), notes


def check_tokens(document: Mapping[str, Any], base: str | None) -> None:
  """The output gets the base's tokenizer files and its chat template."""
  tokenizer = document.get('tokenizer') or {}
  expect(tokenizer, 'tokenizer', ('source', 'tokens', 'pad_to_multiple_of'))
  fix = 'remove it, merge, and change the tokenizer of the output'
  for key in ('tokens', 'pad_to_multiple_of'):
    if tokenizer.get(key) is not None:
      raise refuse(
        f'tokenizer.{key}', tokenizer[key], 'vocabularies are not rebuilt here', fix
      )
  given = {'tokenizer_source': document.get('tokenizer_source')}
  if document.get('tokenizer') is not None:
    given['tokenizer.source'] = tokenizer.get('source', 'union')
  for key, value in given.items():
    if value in (None, 'base'):
      continue
    if value == 'union' or local_folder(value, key) != base:
      raise refuse(
        key,
        value,
        "the output has the base's tokenizer; other vocabularies are not matched "
        'token by token here',
        'write base',
      )
  if document.get('chat_template') is not None:
    raise refuse(
      'chat_template',
      document['chat_template'],
      "the output has the base's chat template",
      fix,
    )
