"""transformers computes the same: logits, greedy texts, and folders written back."""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.generate import generate, left_padded
from resmerge_jax.models.load import load_decoder
from resmerge_jax.models.save import hf_tensors, save_decoder
from tests import groups
from tests.models import tiny

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES: dict[str, Any] = {
  'vocab_size': 96,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': 0,
}
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 100.0,  # wavelengths on both sides of the bounds, and between
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}
MODELS = {
  'qwen2_tied': transformers.Qwen2Config(tie_word_embeddings=True, **SIZES),
  'qwen2': transformers.Qwen2Config(
    rope_parameters={'rope_type': 'default', 'rope_theta': 1e6}, **SIZES
  ),
  'qwen3_tied': transformers.Qwen3Config(
    tie_word_embeddings=True, head_dim=16, **SIZES
  ),
  'qwen3': transformers.Qwen3Config(head_dim=16, attention_bias=True, **SIZES),
  'llama_tied': transformers.LlamaConfig(tie_word_embeddings=True, **SIZES),
  'llama': transformers.LlamaConfig(
    attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3, **SIZES
  ),
}
TOKENS = np.arange(60).reshape(2, 30) % SIZES['vocab_size']
PROMPTS = [[3, 4, 5], [7], [9, 10, 11, 12, 13]]


@dataclasses.dataclass(frozen=True)
class Case:
  theirs: Any
  folder: pathlib.Path
  ours: Decoder


@pytest.fixture(scope='module', params=MODELS)
def case(request, tmp_path_factory) -> Case:
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(MODELS[request.param]).eval()
  for value in model.parameters():  # no bias is zero, no norm one
    value.data += 0.2 * torch.randn_like(value)
  folder = tmp_path_factory.mktemp(request.param) / 'model'
  model.save_pretrained(folder)
  return Case(model, folder, load_decoder(folder))


def assert_same(got: Any, want: Any) -> None:
  got, want = np.asarray(got), np.asarray(want)
  # float32 sums in another order leave 2e-6 of the largest logit.
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * abs(want).max())


def test_logits(case):
  with torch.no_grad():
    want = case.theirs(torch.from_numpy(TOKENS)).logits
  got = tiny.forward(case.ours, TOKENS)
  assert got.dtype == np.float32
  assert_same(got, want)


def test_greedy_texts_of_ragged_prompts(case):
  tokens, mask = left_padded(PROMPTS)
  want = case.theirs.generate(
    torch.from_numpy(tokens).long(),
    attention_mask=torch.from_numpy(mask).long(),
    max_new_tokens=16,
    do_sample=False,
  )[:, tokens.shape[1] :].numpy()
  got = generate(case.ours, tokens, mask, max_new=16, eos_ids=case.ours.config.eos_ids)
  got_tokens = np.asarray(got.tokens_BxG)
  np.testing.assert_array_equal(got_tokens[:, : want.shape[1]], want)
  assert not got_tokens[:, want.shape[1] :].any()
  ends = [list(row).index(2) + 1 if 2 in row else 16 for row in got_tokens]
  assert list(got.lengths_B) == ends


def test_transformers_loads_what_is_saved(case, tmp_path, caplog):
  save_decoder(case.ours, tmp_path / 'out')
  logger = logging.getLogger('transformers')
  logger.addHandler(caplog.handler)
  try:
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / 'out', output_loading_info=True
    )
  finally:
    logger.removeHandler(caplog.handler)
  assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
  assert not any(info.values()), info
  assert loaded.dtype == torch.float32
  with torch.no_grad():
    got, want = (
      m.eval()(torch.from_numpy(TOKENS)).logits for m in (loaded, case.theirs)
    )
  assert torch.equal(got, want)
  stored = groups.load(case.folder)
  ours = dict(hf_tensors(case.ours))
  assert ours.keys() == stored.keys()
  for name, value in groups.load(tmp_path / 'out').items():
    np.testing.assert_array_equal(value, stored[name])
    np.testing.assert_array_equal(ours[name], value)


@pytest.mark.parametrize('case', ['qwen2_tied', 'llama'], indirect=True)
def test_on_eight_devices(case):
  mesh = tiny.mesh(4, 2)
  model = load_decoder(case.folder, mesh)
  assert model.layers[0].mlp.up.kernel[...].sharding.spec == P('fsdp', 'tp')
  assert model.layers[1].attn.o.kernel[...].sharding.spec == P('tp', None, 'fsdp')
  with jax.set_mesh(mesh):
    got = tiny.forward(model, np.concatenate([TOKENS, TOKENS]))
    assert got.sharding.spec[0] == 'fsdp'
    texts = generate(model, *left_padded(PROMPTS), max_new=8, eos_ids=())
  assert_same(got[2:], tiny.forward(case.ours, TOKENS))
  alone = generate(case.ours, *left_padded(PROMPTS), max_new=8, eos_ids=())
  np.testing.assert_array_equal(texts.tokens_BxG, alone.tokens_BxG)
