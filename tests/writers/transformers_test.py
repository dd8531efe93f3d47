"""transformers loads what the writer wrote, without a warning."""

import json
import logging

import numpy as np
import pytest
import torch
import transformers

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.plan.layout import lay_out
from resmerge_jax.writers.folder import FolderWriter
from resmerge_jax.writers.sidecar import copied_side_files, output_config


def base_folder(path, tied: bool):
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=tied,
    pad_token_id=None,
  )
  model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
  model.save_pretrained(path)
  return model


def rewrite(base, output, limit: int | None, tie: bool, heads_equal: bool | None):
  """Copies the folder through the writer."""
  source = open_checkpoint(base)
  layout = lay_out(list(source.tensors.values()), limit)
  with FolderWriter(output, layout) as writer:
    for name, ref in source.tensors.items():
      data = np.fromfile(base / ref.file, np.uint8, ref.nbytes, offset=ref.start)
      writer.write(name, 0, data)
    config, notes = output_config(
      {**source.config, 'tie_word_embeddings': tie},
      'bfloat16',
      layout.where.values(),
      heads_equal=heads_equal,
    )
    writer.commit({**copied_side_files(source), 'config.json': config})
  return notes


@pytest.mark.parametrize(
  ('stored_head', 'tie', 'limit'),
  [(False, True, None), (False, True, 2000), (True, False, 2000), (True, True, None)],
)
def test_transformers_loads_the_same_model(tmp_path, caplog, stored_head, tie, limit):
  model = base_folder(tmp_path / 'base', tied=not stored_head)
  heads_equal = False if stored_head else None
  notes = rewrite(tmp_path / 'base', tmp_path / 'out', limit, tie, heads_equal)
  assert bool(notes) == (stored_head and tie)  # a tied config with a head of its own
  shards = list((tmp_path / 'out').glob('*.safetensors'))
  assert (len(shards) > 1) == (limit is not None)
  logger = logging.getLogger('transformers')
  logger.addHandler(caplog.handler)
  try:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  finally:
    logger.removeHandler(caplog.handler)
  assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
  assert loaded.dtype == torch.bfloat16
  assert loaded.config.tie_word_embeddings == (not stored_head)
  state = loaded.state_dict()
  for name, value in model.state_dict().items():
    assert torch.equal(state[name], value), name
  assert (tmp_path / 'out' / 'generation_config.json').read_bytes() == (
    tmp_path / 'base' / 'generation_config.json'
  ).read_bytes()
  written = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert written['dtype'] == 'bfloat16'
