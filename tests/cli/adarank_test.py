"""tools.adarank: masks that fit the merge it prints, and what it refuses at once."""

import json
import pathlib
import shlex

import numpy as np
import pytest
from safetensors import safe_open

from resmerge_jax.cli import adarank, plan
from tests import commands
from tests.adarank import small
from tests.cli.merge_test import assert_refused


@pytest.fixture(scope='module')
def given(tmp_path_factory) -> list[str]:
  folder = tmp_path_factory.mktemp('group')
  base, *experts = small.write_group(folder)
  prompts = small.write_prompts(folder / 'prompts.jsonl')
  return [f'--base={base}', f'--experts={",".join(experts)}', f'--prompts={prompts}']


def test_learned_masks_are_merged(given, tmp_path):
  output = tmp_path / 'masks.safetensors'
  options = ['--steps=3', '--batch=2', '--learning_rate=0.2', '--positions=last']
  done = commands.run(adarank, *given, f'--output={output}', *options)
  assert (done.status, sorted(p.name for p in tmp_path.iterdir())) == (
    0,
    ['masks.safetensors', 'masks.safetensors.csv'],
  ), done.err
  assert 'needs ' in done.err
  assert 'step 3: entropy ' in done.err
  assert len((tmp_path / 'masks.safetensors.csv').read_text().splitlines()) == 4
  with safe_open(output, 'np') as file:
    about = file.metadata()
    name = 'model.layers.0.mlp.up_proj.weight'
    mask, norm = (
      file.get_tensor(key) for key in (f'{name}:mask_NxS', 'model.norm.weight:lambda_N')
    )
  assert json.loads(about['experts']) == list(small.EXPERTS)
  assert json.loads(about['adarank'])['positions'] == 'last'
  assert (mask.shape, mask.dtype) == ((2, 16), np.uint8)
  assert norm.shape == (2,)
  first, command = done.out.splitlines()
  assert first.endswith('components of 7 matrices kept')
  words = shlex.split(command.replace('MERGED', str(tmp_path / 'merged')))
  assert words[:3] == ['python', '-m', 'tools.merge']
  planned = commands.run(plan, *words[3:])
  assert planned.status == 0, planned.err
  assert f'masks of 7 matrices from {output}' in planned.out
  again = commands.run(adarank, *given, f'--output={output}', *options)
  assert_refused(again, 'output exists already')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], 'missing flags\n  - --output'),
    (['--output=nowhere/masks.safetensors'], 'there is no folder nowhere'),
    (['--output=masks.safetensors', '--steps=0'], 'steps: got 0, expected more than 0'),
    (['--output=masks.safetensors', '--expert_ids=a,b'], "unknown expert 'math'"),
  ],
)
def test_refused(given, flags, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert_refused(commands.run(adarank, *given, *flags), message)
  assert not list(pathlib.Path().iterdir())
