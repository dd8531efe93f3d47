"""config.json of the output agrees with its tensors, and keeps everything else."""

import json
from typing import Any

import pytest

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.types import TensorRef
from resmerge_jax.writers.sidecar import copied_side_files, output_config
from tests import folders

BASE = {
  'zeta': [1, {'b': 2, 'a': float('inf')}],
  'architectures': ['Qwen2ForCausalLM'],
  'tie_word_embeddings': True,
  'vocab_size': 6,
  'torch_dtype': 'float32',
  'name': 'é',
}


def tensors(dtype: str = 'BF16', head: bool = False) -> list[TensorRef]:
  names = ['model.embed_tokens.weight', *(['lm_head.weight'] if head else [])]
  return [TensorRef(name, dtype, (6, 4)) for name in names]


def run(config: dict[str, Any], output_dtype: str = 'base', refs=None, **kwargs):
  before = json.dumps(config)
  text, notes = output_config(config, output_dtype, refs or tensors(), **kwargs)
  assert json.dumps(config) == before  # the argument is not changed
  return json.loads(text), notes


def test_everything_else_is_kept_in_order():
  text, notes = output_config(BASE, 'bfloat16', tensors())
  written = json.loads(text)
  assert written == {**BASE, 'torch_dtype': 'bfloat16'}
  assert list(written) == list(BASE)
  assert text.startswith(b'{\n  "zeta": [\n    1,')
  assert text.endswith(b'}\n')
  assert notes == ['config.json: torch_dtype float32 -> bfloat16']


@pytest.mark.parametrize(
  ('fields', 'expected', 'notes'),
  [
    ({'dtype': 'bfloat16'}, {'dtype': 'float16'}, ['dtype bfloat16 -> float16']),
    (
      {'torch_dtype': 'torch.float32', 'dtype': None},
      {'torch_dtype': 'float16', 'dtype': 'float16'},
      ['dtype None -> float16', 'torch_dtype float32 -> float16'],
    ),
    ({'torch_dtype': 'torch.float16'}, {'torch_dtype': 'torch.float16'}, []),
    (
      {
        'text_config': {'dtype': 'float32'},
        'vision_config': {'torch_dtype': 'float16'},
      },
      {
        'text_config': {'dtype': 'float16'},
        'vision_config': {'torch_dtype': 'float16'},
      },
      ['text_config.dtype float32 -> float16'],
    ),
    ({}, {'torch_dtype': 'float16'}, ['torch_dtype float16 added']),
    (
      {'vocabulary_map': {'dtype': 7}},  # a token that happens to be called so
      {'vocabulary_map': {'dtype': 7}, 'torch_dtype': 'float16'},
      ['torch_dtype float16 added'],
    ),
  ],
)
def test_dtype_fields_state_the_output_dtype(fields, expected, notes):
  config = {'tie_word_embeddings': True, **fields}
  written, found = run(config, 'float16', tensors('F16'))
  assert written == {'tie_word_embeddings': True, **expected}
  assert found == [f'config.json: {note}' for note in notes]


@pytest.mark.parametrize(
  ('stated', 'stored', 'expected'),
  [
    ('bfloat16', ['BF16', 'F32'], 'bfloat16'),
    ('float32', ['BF16', 'F32'], 'float32'),
    ('torch.float32', ['F32'], 'torch.float32'),
    ('float32', ['BF16', 'BF16', 'F16', 'I64'], 'bfloat16'),  # nothing is stored so
    (None, ['BF16'], None),
    ('float32', ['I64'], 'float32'),
  ],
)
def test_base_dtype_is_left_alone_unless_nothing_is_stored_so(stated, stored, expected):
  refs = [TensorRef(f't{i}', dtype, (2, 2)) for i, dtype in enumerate(stored)]
  written, notes = run({'architectures': ['Qwen2Model'], 'dtype': stated}, 'base', refs)
  assert written['dtype'] == expected
  stale = ['config.json: dtype float32 -> bfloat16'] if stated != expected else []
  assert notes == stale
  assert 'dtype' not in run({'tie_word_embeddings': True}, 'base', refs)[0]


TIE = 'config.json: tie_word_embeddings'
BOTH = f'{TIE} is true and an lm_head is stored, which '


@pytest.mark.parametrize(
  ('tie', 'head', 'equal', 'expected', 'note'),
  [
    (True, False, None, True, None),
    (False, True, None, False, None),
    (False, True, True, False, None),
    (None, True, False, None, None),
    (True, True, True, True, f'{BOTH}equals the embedding: loaders tie them'),
    (True, True, None, True, f'{BOTH}was not compared with it: loaders tie them'),
    (
      True, True, False, False,
      f'{TIE} true -> false: the stored lm_head differs from the embedding',
    ),
    (
      False, False, None, False,
      f'{TIE} is false but no lm_head is stored: loaders will create a random head (the '
      'base has the same gap)',
    ),
    (
      None, False, None, None,
      'config.json does not state tie_word_embeddings and no lm_head is stored: the '
      'loader decides whether the head is the embedding or random (the base has the same '
      'gap)',
    ),
  ],
)  # fmt: skip
def test_tying_agrees_with_the_stored_head(tie, head, equal, expected, note):
  field = {} if tie is None else {'tie_word_embeddings': tie}
  config = {'architectures': ['Qwen2ForCausalLM'], **field}
  written, notes = run(config, refs=tensors(head=head), heads_equal=equal)
  assert written.get('tie_word_embeddings') == expected
  assert notes == ([note] if note else [])


def test_nested_tying_and_headless_models():
  nested = {'text_config': {'tie_word_embeddings': True}}
  written, notes = run(nested, refs=tensors(head=True), heads_equal=False)
  assert written == {'text_config': {'tie_word_embeddings': False}}
  assert notes[0].startswith(
    'config.json: text_config.tie_word_embeddings true -> false'
  )
  config = {'architectures': ['Qwen2Model'], 'tie_word_embeddings': False}
  assert run(config)[1] == []


def test_vocabulary_rows_of_the_output_are_stated():
  tied = {'tie_word_embeddings': True}
  assert run({**tied, 'vocab_size': 6}, out_rows=6) == ({**tied, 'vocab_size': 6}, [])
  written, notes = run({**tied, 'vocab_size': 6}, out_rows=8)
  assert written == {**tied, 'vocab_size': 8}
  assert notes == ['config.json: vocab_size 6 -> 8']
  nested = {**tied, 'text_config': {'vocab_size': 6}, 'audio_config': {'vocab_size': 3}}
  written, notes = run(nested, out_rows=8)
  assert written['text_config'] == {'vocab_size': 8}
  assert written['audio_config'] == {'vocab_size': 3}
  assert notes == ['config.json: text_config.vocab_size 6 -> 8']
  assert run(tied, out_rows=8)[0]['vocab_size'] == 8


def test_side_files_are_the_files_of_the_base(tmp_path):
  files = {**folders.TOKENIZER, 'chat_template.jinja': '{{ x }}', 'README.md': 'base'}
  base = open_checkpoint(folders.write_folder(tmp_path / 'base', files=files))
  found = copied_side_files(base)
  assert found == {
    name: tmp_path / 'base' / name
    for name in ('chat_template.jinja', 'tokenizer.json', 'tokenizer_config.json')
  }
