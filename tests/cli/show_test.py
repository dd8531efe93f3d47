"""The command that shows checkpoint folders."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from resmerge_jax.checkpoint.summary import fold_names
from resmerge_jax.cli import show
from resmerge_jax.errors import InputError
from tests import adapters, folders

ROOT = pathlib.Path(__file__).parents[2]


def test_one_folder(tmp_path, capsys):
  files = {**folders.TOKENIZER, 'generation_config.json': '{}'}
  path = folders.write_folder(tmp_path / 'base', n_shards=2, files=files)
  (path / 'onnx').mkdir()
  show.main(['show', str(path)])
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    f'base  {path}',
    '  model       model_type qwen2, architectures Qwen2ForCausalLM, hidden_size 4, '
    'num_hidden_layers 2',
    '  parameters  132 in 8 tensors, 264 B: BF16 132',
    '  head        tied to the embedding by config.json; no lm_head.weight stored',
    '  tokenizer   tokenizer.json',
    '  copied too  generation_config.json, tokenizer_config.json',
    '  shards',
    '    model-00001-of-00002.safetensors  4 tensors  152 B',
    '    model-00002-of-00002.safetensors  4 tensors  112 B',
    '  tensors',
    *lines[10:15],
    f'  warning: checkpoint {path}: sub-folders are not copied: onnx',
  ]
  assert sorted(tuple(line.split(maxsplit=1)) for line in lines[10:15]) == [
    ('model.embed_tokens.weight', '1 x [6, 4] BF16'),
    ('model.layers.{0..1}.input_layernorm.weight', '2 x [4] BF16'),
    ('model.layers.{0..1}.mlp.up_proj.weight', '2 x [8, 4] BF16'),
    ('model.layers.{0..1}.self_attn.q_proj.weight', '2 x [4, 4] BF16'),
    ('model.norm.weight', '1 x [4] BF16'),
  ]
  assert len({line.index(' x ') for line in lines[10:15]}) == 1  # aligned


def test_differences_from_the_first(tmp_path, capsys):
  base = folders.write_folder(tmp_path / 'base')
  same = folders.write_folder(tmp_path / 'same', n_shards=2)
  weights = {n: a.astype(np.float32) for n, a in folders.tensors(vocab=8).items()}
  del weights['model.norm.weight']
  weights['score.weight'] = np.zeros((1, 4), np.float32)
  files = {'tokenizer.json': '{"version": "2.0"}', 'notes.txt': ''}
  other = folders.write_folder(
    tmp_path / 'other', weights, files=files, rope_theta=1e6, transformers_version='5'
  )
  show.main(['show', str(base), str(same), str(other)])
  out = capsys.readouterr().out
  assert 'same against base\n  nothing: equal names, shapes, dtypes, tokeniz' in out
  assert out.split('other against base\n')[1].splitlines() == [
    '  config.json rope_theta: 10000.0 -> 1000000.0',
    '  missing: model.norm.weight  1 x [4] BF16',
    '  extra: score.weight  1 x [1, 4] F32',
    *(
      f'  {name}: {shape} BF16 -> {new} F32'
      for name, shape, new in (
        ('model.embed_tokens.weight', [6, 4], [8, 4]),
        ('model.layers.{0..1}.input_layernorm.weight', [4], [4]),
        ('model.layers.{0..1}.mlp.up_proj.weight', [8, 4], [8, 4]),
        ('model.layers.{0..1}.self_attn.q_proj.weight', [4, 4], [4, 4]),
      )
    ),
    '  tokenizer.json: other bytes',
    '  missing file: tokenizer_config.json',
    '  extra file: notes.txt',
  ]


def test_names_fold_over_every_number():
  names = [f'h.{i}.experts.{j}.w' for i in (0, 1, 2, 5) for j in range(3)]
  folded = fold_names([*names, 'norm.weight', 'top.7.w'])
  assert [(pattern, len(found)) for pattern, found in folded] == [
    ('h.{0..2,5}.experts.{0..2}.w', 12),
    ('norm.weight', 1),
    ('top.7.w', 1),
  ]


def test_no_folder():
  with pytest.raises(InputError, match='no folder given'):
    show.main(['show'])


def test_bad_folder_from_a_clone(tmp_path):
  command = [sys.executable, '-X', 'importtime', '-m', 'tools.show', tmp_path / 'gone']
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ}
  )
  assert done.returncode == 1
  assert (
    f'error: checkpoint {tmp_path}/gone: no such folder\nWhat to do:' in done.stderr
  )
  assert 'Traceback' not in done.stderr
  imported = {line.split('|')[-1].strip() for line in done.stderr.splitlines()}
  assert 'resmerge_jax.checkpoint.folder' in imported
  assert 'jax' not in imported


def test_an_adapter_and_its_base(tmp_path, capsys):
  weights = folders.tensors()
  base = folders.write_folder(tmp_path / 'base', weights)
  tensors = {
    **adapters.factors(weights, 'model.layers.0.mlp.up_proj'),
    **adapters.factors(weights, 'model.layers.1.mlp.up_proj'),
    **adapters.factors(weights, 'model.layers.1.self_attn.q_proj', rank=1),
    f'{adapters.PREFIX}model.norm.weight': np.ones(4, np.float32),
  }
  path = adapters.write(
    tmp_path / 'math', tensors, rank_pattern={'q_proj': 1}, base_model_name_or_path='B'
  )
  show.main(['show', str(base), str(path)])
  _, adapter, difference = capsys.readouterr().out.split('\n\n')
  assert adapter.splitlines()[:3] == [
    f'math  {path}',
    '  model       a LoRA adapter of B, rank 2, alpha 4, scale alpha / rank, rank 1 of '
    'q_proj',
    '  parameters  60 in 7 tensors, 240 B: F32 60',
  ]
  assert difference.splitlines() == [
    'math on base',
    '  rank 2, scale 2: model.layers.{0..1}.mlp.up_proj.weight',
    '  rank 1, scale 4: model.layers.1.self_attn.q_proj.weight',
    '  stored whole: model.norm.weight',
  ]
