"""Real clients: transformers loads a merge and computes the reference's logits,
mergekit's task arithmetic agrees with ours, safetensors reads every file."""

import json
import logging
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from resmerge_jax.plan.rules import family_of
from tests import groups
from tests.oracles.resmerge import resmerge

SIZES: dict[str, Any] = {
  'vocab_size': 96,
  'hidden_size': 64,
  'intermediate_size': 96,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': None,
}
MODELS = {
  'tied_qwen2': transformers.Qwen2Config(tie_word_embeddings=True, **SIZES),
  'untied_qwen2': transformers.Qwen2Config(tie_word_embeddings=False, **SIZES),
  'qwen3': transformers.Qwen3Config(tie_word_embeddings=True, head_dim=32, **SIZES),
}
TOKENS = torch.arange(60).reshape(2, 30) % SIZES['vocab_size']
State = dict[str, torch.Tensor]


@pytest.fixture(scope='module')
def all_groups(tmp_path_factory) -> dict[str, groups.Group]:
  """Per model a random bfloat16 base and three experts near it, by transformers."""
  return {name: save_group(tmp_path_factory.mktemp(name), name) for name in MODELS}


@pytest.fixture(params=MODELS)
def group(request, all_groups) -> groups.Group:
  return all_groups[request.param]


def save_group(path: pathlib.Path, name: str) -> groups.Group:
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(MODELS[name])
  model = model.to(torch.bfloat16)
  # Large weights make logits that tell small updates apart.
  for value in model.parameters():
    value.data += 0.2 * torch.randn_like(value)
  model.save_pretrained(path / 'base')
  start = {name: value.clone() for name, value in model.named_parameters()}
  experts = tuple(path / task for task in ('math', 'code', 'tool'))
  for folder in experts:
    for name, value in model.named_parameters():
      update = 0.05 * torch.randn(value.shape)
      if value.ndim == 2:
        update += 0.1 * torch.outer(
          torch.randn(len(value)), torch.randn(value.shape[1])
        )
      value.data = (start[name].float() + update).to(torch.bfloat16)
    model.save_pretrained(folder)
  return groups.Group(path / 'base', experts)


def load(
  folder: pathlib.Path, caplog, kind: Any = transformers.AutoModelForCausalLM
) -> transformers.PreTrainedModel:
  """The model, loaded without a word of complaint."""
  logger = logging.getLogger('transformers')
  logger.addHandler(caplog.handler)
  try:
    model, info = kind.from_pretrained(folder, output_loading_info=True)
  finally:
    logger.removeHandler(caplog.handler)
  said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
  assert said == []
  assert not any(info.values()), info
  return model.eval()


@torch.no_grad()
def logits(model: transformers.PreTrainedModel) -> np.ndarray:
  return model.float()(TOKENS).logits.numpy()


def state(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """float64 weights of the stored tensors."""
  found = {}
  for file in sorted(folder.glob('*.safetensors')):
    with safe_open(file, 'pt') as opened:
      for name in opened.keys():  # noqa: SIM118
        found[name] = opened.get_tensor(name).double().numpy()
  return found


def reference(group: groups.Group) -> State:
  """The paper's merge in float64: matrices by the oracle, all else by the mean."""
  base, *experts = (state(path) for path in (group.base, *group.experts))
  merged = {}
  for name, start in base.items():
    deltas = [expert[name] - start for expert in experts]
    if start.ndim == 2 and 'embed' not in name and 'lm_head' not in name:
      update, _ = resmerge(deltas, family=family_of(name))
    else:
      update = sum(deltas) / len(deltas)
    merged[name] = torch.from_numpy(start + update)
  return merged


def test_transformers_loads_the_merge_and_gives_the_references_logits(
  group, tmp_path, caplog
):
  manifest = groups.merge(group, tmp_path / 'out', max_shard_size='30kB')
  assert len(list(manifest.output.glob('*.safetensors'))) > 3
  got = load(manifest.output, caplog)
  assert got.dtype == torch.bfloat16
  base = load(group.base, caplog)
  assert got.config.to_diff_dict() == base.config.to_diff_dict()
  before = logits(base)

  want = load(group.base, caplog)
  merged = {name: value.to(torch.bfloat16) for name, value in reference(group).items()}
  missing, unexpected = want.load_state_dict(merged, strict=False)
  tied = got.config.tie_word_embeddings
  assert (missing, unexpected) == (['lm_head.weight'] if tied else [], [])
  for name, value in got.state_dict().items():
    if name in merged:
      groups.assert_within_a_unit(
        *(
          x.view(torch.uint16).numpy().view(groups.BF16) for x in (value, merged[name])
        ),
        share=0.01,
        name=name,
      )
  want_logits, got_logits = logits(want), logits(got)
  error = np.linalg.norm(got_logits - want_logits)
  moved = np.linalg.norm(want_logits - before)
  assert error < 5e-3 * moved, (error, moved)


MERGEKIT = """
import json, sys, warnings
warnings.simplefilter('ignore')
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
for output, base, *experts in json.loads(sys.argv[1]):
  config = MergeConfiguration.model_validate({
    'merge_method': 'task_arithmetic',
    'base_model': base,
    'models': [{'model': e, 'parameters': {'weight': 1 / 3}} for e in experts],
    'parameters': {'normalize': False},
    'dtype': 'float32',
    'out_dtype': 'bfloat16',
  })
  run_merge(config, output, options)
"""


def test_mergekits_task_arithmetic_agrees(all_groups, tmp_path):
  jobs = [
    [str(tmp_path / name), str(group.base), *map(str, group.experts)]
    for name, group in all_groups.items()
  ]
  done = subprocess.run(
    [sys.executable, '-c', MERGEKIT, json.dumps(jobs)],
    env={**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  for model, group in all_groups.items():
    merged = groups.merge(group, tmp_path / f'our_{model}', method=groups.MEAN)
    got, want = groups.load(merged.output), groups.load(tmp_path / model)
    assert got.keys() == want.keys()
    for name, value in got.items():
      groups.assert_within_a_unit(value, want[name], share=0.003, name=name)


def test_safetensors_reads_every_file(group, tmp_path):
  manifest = groups.merge(
    group, tmp_path / 'out', method=groups.MEAN, max_shard_size='30kB'
  )
  files = sorted(manifest.output.glob('*.safetensors'))
  names = []
  for file in files:
    for framework in ('pt', 'np'):
      with safe_open(file, framework) as opened:
        assert opened.metadata() == {'format': 'pt'}
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    names += found
    assert all(np.isfinite(value.astype(np.float32)).all() for value in found.values())
  assert sorted(names) == sorted(state(group.base))


@pytest.mark.parametrize('same', [True, False])
def test_a_tied_base_that_stores_a_head(tmp_path, caplog, same):
  """Merged, head and embedding may differ although config.json ties them."""
  torch.manual_seed(0)
  model = transformers.Qwen2ForCausalLM(MODELS['untied_qwen2']).to(torch.bfloat16)
  if same:
    model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
  for name in ('base', 'e0'):
    model.save_pretrained(tmp_path / name)
    config = tmp_path / name / 'config.json'
    text = config.read_text()
    assert '"tie_word_embeddings": false' in text
    config.write_text(
      text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )
    for value in model.parameters():
      value.data += 0.1
  group = groups.Group(tmp_path / 'base', (tmp_path / 'e0',))
  manifest = groups.merge(group, tmp_path / 'out', method=groups.MEAN)
  assert groups.config(manifest.output)['tie_word_embeddings'] is same
  assert any(
    'ties the head to the embedding, but lm_head' in w for w in manifest.warnings
  )
  note = 'config.json: tie_word_embeddings true -> false: the stored lm_head differs'
  assert any(w.startswith(note) for w in manifest.warnings) is not same
  loaded = load(manifest.output, caplog)
  stored = groups.load(manifest.output)
  for name, value in loaded.state_dict().items():
    assert torch.equal(value.float(), torch.from_numpy(stored[name].astype(np.float32)))
