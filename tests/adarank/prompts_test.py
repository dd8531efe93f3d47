"""Prompts of the experts: what a line may be, and what is refused."""

import json
import pathlib
import sys

import numpy as np
import pytest

from resmerge_jax.adarank.prompts import read_prompts
from resmerge_jax.errors import InputError
from tests.adarank import small


def read(path: pathlib.Path, *lines: object) -> list[list[np.ndarray]]:
  texts = [x if isinstance(x, str) else json.dumps(x) for x in lines]
  (path / 'prompts.jsonl').write_text('\n'.join(texts))
  return read_prompts(path / 'prompts.jsonl', small.EXPERTS, path, 40, 8)


def test_tokens_and_texts(tmp_path):
  tokenizer = pytest.importorskip('resmerge_jax.lab.tokenizer').tokenizer()
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  math, code = read(
    tmp_path,
    {'expert': 'code', 'ids': [5, 6]},
    '',
    {'expert': 'math', 'text': 'abc'},
    {'expert': 'code', 'ids': [39]},
  )
  assert [ids.tolist() for ids in code] == [[5, 6], [39]]
  assert [ids.tolist() for ids in math] == [[2, 3, 4]]


def test_all_that_is_wrong_is_said_at_once(tmp_path):
  with pytest.raises(InputError) as error:
    read(
      tmp_path,
      'no JSON',
      {'expert': 'math', 'ids': [1], 'text': 'both'},
      {'expert': 'math', 'ids': [1.5]},
      {'expert': 'art', 'ids': [1]},
      {'expert': 'math', 'ids': []},
      {'expert': 'math', 'ids': [1] * 9},
      {'expert': 'math', 'ids': [40]},
      {'expert': 'math', 'ids': [1], 'label': 3},
    )
  assert error.value.problems == (
    'line 1: no prompt',
    'line 2: no prompt',
    'line 3: no prompt',
    "line 4: unknown expert 'art'",
    'line 5: 0 tokens, expected 1 to 8',
    'line 6: 9 tokens, expected 1 to 8',
    'line 7: a token outside 0 to 39',
    'line 8: no prompt',
    "expert 'math': no prompts",
    "expert 'code': no prompts",
  )


def test_texts_without_a_tokenizer(tmp_path, monkeypatch):
  line = {'expert': 'math', 'text': 'abc'}
  pytest.importorskip('tokenizers')
  with pytest.raises(InputError, match=r'need .*tokenizer.json, which cannot be read'):
    read(tmp_path, line)
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  with pytest.raises(InputError) as error:
    read(tmp_path, line)
  assert 'need the package tokenizers, which is not installed' in str(error.value)
  assert """pip install '.[lab]', or give the prompts as tokens""" in str(error.value)


def test_no_file(tmp_path):
  with pytest.raises(InputError, match=r'nowhere\.jsonl: cannot be read'):
    read_prompts(tmp_path / 'nowhere.jsonl', small.EXPERTS, tmp_path, 40, 8)
