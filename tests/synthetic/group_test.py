"""Synthetic groups: real folders, RL-like updates, the same bytes for the same seed."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from resmerge_jax.errors import InputError
from resmerge_jax.synthetic import SHAPES, ModelShape, make_group
from resmerge_jax.synthetic import group as group_module

TEXT = 'Let the user call x == 10()\n\n\tnaïve → 日本 🙂 '


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
  tensors = {}
  for file in sorted(folder.glob('*.safetensors')):
    with safe_open(file, 'np') as shard:
      tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
  return tensors


def read_bytes(folder: Path) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file()
  }


def shrunk(shape: ModelShape) -> ModelShape:
  """One layer, small vocabulary, a sixteenth of the widths: shapes stay as telling."""
  return dataclasses.replace(
    shape,
    hidden=shape.hidden // 16,
    intermediate=shape.intermediate // 16,
    head_dim=shape.head_dim // 16,
    vocab=512,
    layers=1,
  )


def test_folders_are_complete_and_index_matches_shards(tmp_path):
  base, experts = make_group(tmp_path / 'group', 'tiny', n_experts=4)

  assert [base.name, *(e.name for e in experts)] == [
    'base',
    'expert_math',
    'expert_code',
    'expert_tool',
    'expert_3',
  ]
  for folder in (base, *experts):
    files = {path.name for path in folder.iterdir()}
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    shards = sorted(set(index['weight_map'].values()))
    assert len(shards) > 1
    assert files == {
      'config.json',
      'generation_config.json',
      'model.safetensors.index.json',
      'special_tokens_map.json',
      'tokenizer.json',
      'tokenizer_config.json',
      *shards,
    }
    for shard in shards:
      with safe_open(folder / shard, 'np') as tensors:
        names = set(tensors.keys())
      assert names == {n for n, file in index['weight_map'].items() if file == shard}
    tensors = read_tensors(folder)
    sizes = [tensor.nbytes for tensor in tensors.values()]
    assert index['metadata']['total_size'] == sum(sizes)
    assert 2 * sum(tensor.size for tensor in tensors.values()) == sum(sizes)
  assert sum(tensor.size for tensor in read_tensors(base).values()) < 1_000_000


def test_one_shard_has_no_index(tmp_path):
  base, _ = make_group(tmp_path / 'g', 'tiny', layers=1, max_shard_size='1GB')

  assert [p.name for p in base.glob('*.safetensors*')] == ['model.safetensors']


def test_updates_look_like_those_of_rl(tmp_path):
  base, experts = make_group(tmp_path / 'group', 'tiny', layers=2)
  base_tensors = read_tensors(base)
  name = 'model.layers.1.mlp.gate_proj.weight'
  before_RxC = base_tensors[name].astype(np.float32)
  directions, deltas = [], []
  for expert in experts:
    tensors = read_tensors(expert)
    same = sum(int(np.sum(tensors[n] == t)) for n, t in base_tensors.items())
    assert 0.3 < same / sum(t.size for t in base_tensors.values()) < 0.8
    assert all(np.any(tensors[n] != base_tensors[n]) for n in tensors)

    delta_RxC = tensors[name].astype(np.float32) - before_RxC
    assert 1e-3 < np.linalg.norm(delta_RxC) / np.linalg.norm(before_RxC) < 1e-2
    left_RxK, sigma_K, _ = np.linalg.svd(delta_RxC, full_matrices=False)
    assert sigma_K[0] > 1.5 * sigma_K[1]
    directions.append(left_RxK[:, 0])
    deltas.append(delta_RxC / np.linalg.norm(delta_RxC))

  for i, j in ((0, 1), (0, 2), (1, 2)):
    assert 0.4 < abs(directions[i] @ directions[j]) < 0.9
    assert 0.05 < np.sum(deltas[i] * deltas[j]) < 0.6


def test_equal_seeds_give_equal_bytes(tmp_path):
  for name, seed in (('a', 0), ('b', 0), ('c', 1)):
    make_group(tmp_path / name, 'tiny', n_experts=2, layers=1, seed=seed)

  first, second = read_bytes(tmp_path / 'a'), read_bytes(tmp_path / 'b')
  assert first == second
  other = read_bytes(tmp_path / 'c')
  shards = [name for name in first if name.endswith('.safetensors')]
  assert shards
  assert all(first[name] != other[name] for name in shards)


def test_blocks_cover_large_tensors(tmp_path, monkeypatch):
  """A tensor in many blocks has no gap: every row of base and expert is drawn."""
  monkeypatch.setattr(group_module.weights, 'BLOCK_SIZE', 1000)
  base, (expert,) = make_group(tmp_path / 'g', 'tiny', n_experts=1, layers=1)

  embed = read_tensors(base)['model.embed_tokens.weight'].astype(np.float32)
  update = read_tensors(expert)['model.embed_tokens.weight'].astype(np.float32) - embed
  stds = embed.std(axis=1)
  assert stds.shape == (512,)
  assert np.all((stds > 0.01) & (stds < 0.03))
  assert np.mean(np.any(update != 0, axis=1)) > 0.95
  assert len(np.unique(embed, axis=0)) == 512


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_dtype(tmp_path, dtype):
  base, _ = make_group(tmp_path / 'g', 'tiny', 1, layers=1, dtype=dtype)

  assert {tensor.dtype for tensor in read_tensors(base).values()} == {np.dtype(dtype)}
  assert json.loads((base / 'config.json').read_text())['torch_dtype'] == dtype


def test_bad_arguments_are_told_all_at_once(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError) as error:
    make_group(tmp_path, 'tiny', n_experts=0, layers=5, seed=-1, dtype='int8')

  assert error.value.problems == (
    'layers 5: expected 1 to 4',
    '0 experts: expected at least 1',
    'seed -1: expected 0 or more',
    "dtype 'int8': expected one of bfloat16, float16, float32",
    f'output {tmp_path}: not empty; remove it or name another folder',
  )
  with pytest.raises(InputError, match="shape 'gpt-2': expected one of tiny, qwen2"):
    make_group(tmp_path / 'new', 'gpt-2')
  with pytest.raises(InputError, match='is a file, expected a folder'):
    make_group(tmp_path / 'file', 'tiny')


def test_vocabulary_can_be_reduced_to_what_the_tokenizer_needs(tmp_path):
  larger = dataclasses.replace(SHAPES['tiny'], vocab=2000)
  base, _ = make_group(tmp_path / 'g', larger, n_experts=1, layers=1, vocab_rows=600)

  assert read_tensors(base)['model.embed_tokens.weight'].shape == (600, 128)
  assert json.loads((base / 'config.json').read_text())['vocab_size'] == 600
  with pytest.raises(InputError, match='vocab_rows 511: expected 512 to 2000'):
    make_group(tmp_path / 'h', larger, vocab_rows=511)


def test_too_little_space_is_told_before_writing(tmp_path, monkeypatch):
  usage = group_module.shutil.disk_usage(tmp_path)._replace(free=1 << 20)
  monkeypatch.setattr(group_module.shutil, 'disk_usage', lambda _: usage)
  with pytest.raises(InputError, match='takes 526 GiB, 1 MiB are free'):
    make_group(tmp_path / 'g', 'llama-3-70b')

  assert not any((tmp_path / 'g').iterdir())


@pytest.mark.parametrize(
  ('name', 'published'),
  [
    ('qwen2.5-0.5b', 494_032_768),
    ('qwen2.5-1.5b', 1_543_714_304),
    ('qwen2.5-3b', 3_085_938_688),
    ('qwen2.5-7b', 7_615_616_512),
    ('qwen3-4b', 4_022_468_096),
    ('qwen3-30b-a3b', 30_532_122_624),
    ('llama-3-8b', 8_030_261_248),
    ('llama-3-70b', 70_553_706_496),
  ],
)
def test_parameter_counts_are_those_published(name, published):
  assert SHAPES[name].n_parameters == published


@pytest.mark.parametrize('name', ['qwen2.5-7b', 'qwen3-4b', 'llama-3-8b'])
@pytest.mark.parametrize('tied', [True, False])
def test_names_and_shapes_equal_those_of_transformers(name, tied):
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM

  shape = dataclasses.replace(shrunk(SHAPES[name]), tied=tied)
  config = shape.config('bfloat16')
  with torch.device('meta'):
    model = AutoModelForCausalLM.from_config(
      AutoConfig.for_model(config.pop('model_type'), **config)
    )

  expected = {n: tuple(p.shape) for n, p in model.named_parameters()}
  assert dict(shape.tensors()) == expected


def test_transformers_loads_groups_and_tokenizer_round_trips(tmp_path, caplog):
  import transformers

  transformers.logging.enable_propagation()  # its own handler hides from caplog
  transformers.logging.disable_progress_bar()
  with caplog.at_level(logging.WARNING):
    for tied in (True, False):
      base, experts = make_group(tmp_path / str(tied), 'tiny', tied=tied, layers=2)
      for folder in (base, experts[0]):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
          folder, output_loading_info=True
        )
        assert not any(info.values()), info
        assert model.dtype == model.lm_head.weight.dtype
        assert str(model.dtype) == 'torch.bfloat16'
        ours = model.lm_head.weight is model.model.embed_tokens.weight
        assert ours == tied

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = tokenizer(TEXT)['input_ids']
    assert tokenizer.decode(ids) == TEXT
    assert len(ids) < len(TEXT.encode())
    assert len(tokenizer) <= model.config.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id
    chat = [{'role': 'user', 'content': 'Hi'}]
    text = tokenizer.apply_chat_template(
      chat, tokenize=False, add_generation_prompt=True
    )
    assert text == '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
    assert len(tokenizer('<|im_end|>')['input_ids']) == 1
  assert [record.getMessage() for record in caplog.records] == []
