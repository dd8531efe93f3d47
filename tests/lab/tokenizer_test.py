"""The tokenizer, and the files that transformers makes the same one from."""

import numpy as np
import pytest
import transformers

from resmerge_jax.lab import tokenizer
from resmerge_jax.lab.tasks import BASE_TASKS


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  for name, text in tokenizer.tokenizer_files(64).items():
    (folder / name).write_bytes(text)
  # The class of the tokenizer depends on it.
  (folder / 'config.json').write_text('{"model_type": "qwen2"}')
  return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize('task', BASE_TASKS, ids=lambda task: task.name)
def test_transformers_encodes_the_same_ids(task, theirs):
  examples = task.examples(np.random.default_rng(0), 20)
  ours = tokenizer.prompt_ids(task, examples)
  batch = theirs(
    [example.prompt for example in examples],
    padding='max_length',
    max_length=task.prompt_width,
    return_tensors='np',
  )
  np.testing.assert_array_equal(batch['input_ids'], ours)
  np.testing.assert_array_equal(batch['attention_mask'], ours != tokenizer.PAD_ID)
  answers = tokenizer.answer_ids(task, [example.answer for example in examples])
  for row, example in zip(answers, examples, strict=True):
    assert theirs.decode(row, skip_special_tokens=True) == example.answer
    assert row[len(example.answer)] == theirs.eos_token_id
    assert tokenizer.text_of(row) == example.answer


def test_every_character_is_a_token(theirs):
  assert len(theirs) == tokenizer.VOCAB_SIZE == 55
  text = 'Mz9+-=%?:(), .<>'
  assert len(theirs(text)['input_ids']) == len(text)
  assert theirs.decode(theirs(text)['input_ids']) == text
  assert tokenizer.tokenizer().encode(text).ids == theirs(text)['input_ids']
