"""A whole tiny group by the command: folders, twins, tables, and doing it again."""

import json
import threading
import time

import numpy as np
import pytest
import torch
import transformers

from resmerge_jax.cli import lab
from resmerge_jax.cli.config_file import config_folder
from resmerge_jax.errors import InputError
from resmerge_jax.lab import compare
from resmerge_jax.lab import group as group_module
from resmerge_jax.lab.answers import greedy, prompts_of
from resmerge_jax.lab.recipe import group_recipe
from resmerge_jax.lab.scores import Measured
from resmerge_jax.lab.tokenizer import text_of
from resmerge_jax.lab.variants import Entry
from resmerge_jax.models.load import load_decoder
from tests import commands

# Nothing is learned in so few steps, and every goal is met at once.
SMALL = """
  config.tasks = ('math',)
  config.test_prompts, config.check_prompts, config.check_every = 20, 10, 1
  config.model = {'hidden_size': 16, 'intermediate_size': 24, 'layers': 1}
  config.base = {
    'clean_goal': 0.0, 'mixed_steps': 1, 'band': (0.0, 1.0), 'examples': (2, 2, 2, 2)
  }
  config.rl = {'steps': 2, 'prompts': 2, 'samples': 2, 'rate': 1e-3}
  config.sft = {'examples': 2, 'rate': 1e-3}
  return config
"""
MODELS = ('base', 'rl_math', 'sft_math', 'sft_length_math')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  text = (config_folder() / 'lab_twins.py').read_text()
  path = tmp_path_factory.mktemp('config') / 'tiny.py'
  path.write_text(text.replace('\n  return config\n', SMALL))
  return path


def run(command, config, folder, *flags):
  return commands.run(lab, command, f'--config={config}', f'--output={folder}', *flags)


@pytest.fixture(scope='module')
def group(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp('lab')
  done = run('train', config, folder)
  assert done.status == 0, done.err
  return folder / 'seed_0', done


def test_models_and_tables(group):
  folder, done = group
  assert {path.parent.name for path in folder.glob('*/record.json')} == set(MODELS)
  assert (folder / 'curves.png').stat().st_size > 10_000
  assert done.out == (folder / 'evaluation.md').read_text()
  lines = done.out.splitlines()
  assert lines[2] == '| model | math | mean |'
  assert [line.split(' | ')[0][2:] for line in lines[4:8]] == list(MODELS)
  assert 'rl_math: gains 0.0 points on math, less than 25' in done.out
  right = json.loads((folder / 'evaluation.json').read_text())
  assert right.keys() == set(MODELS)
  assert len(right['base']['math']) == 20
  records = {n: json.loads((folder / n / 'record.json').read_text()) for n in MODELS}
  assert records['sft_math']['check'] >= records['rl_math']['check']
  assert records['sft_length_math']['length'] >= records['rl_math']['length']


@pytest.mark.parametrize('precision', ['bf16', 'fp32'])
def test_transformers_gives_the_same_logits_and_answers(group, precision):
  folder = group[0] / 'rl_math' / precision
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  dtype = {'bf16': torch.bfloat16, 'fp32': torch.float32}[precision]
  assert theirs.dtype == dtype
  theirs = theirs.to(torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ours = load_decoder(folder, param_dtype='float32')
  prompts = prompts_of('tool', 20, test=True)  # spaces, and prompts of many widths
  texts = [example.prompt for example in prompts.examples]
  batch = tokenizer(texts, padding='max_length', max_length=18, return_tensors='pt')
  np.testing.assert_array_equal(batch['input_ids'], prompts.prompts_QxP)
  with torch.no_grad():
    logits = theirs(**batch).logits.numpy()
  # Two float32 programs of one layer; logits are of order 0.1.
  tokens, mask = batch['input_ids'].numpy(), batch['attention_mask'].numpy() == 1
  np.testing.assert_allclose(
    np.asarray(ours(tokens, mask))[mask], logits[mask], atol=1e-5
  )
  new = theirs.generate(**batch, max_new_tokens=4)[:, 18:]
  answers = greedy(ours, prompts.prompts_QxP, 4)
  texts = tokenizer.batch_decode(new, skip_special_tokens=True)
  assert texts == [text_of(row) for row in answers]


def test_a_second_run_makes_nothing_and_the_same_seed_the_same(group, config, tmp_path):
  folder, done = group
  weights = folder / 'rl_math/fp32/model.safetensors'
  before = weights.stat().st_mtime_ns
  assert run('train', config, folder.parent).out == done.out
  assert weights.stat().st_mtime_ns == before
  other = tmp_path / 'other'
  assert run('train', config, other).status == 0
  for name in MODELS:
    same = (
      path / name / 'fp32/model.safetensors' for path in (folder, other / 'seed_0')
    )
    assert next(same).read_bytes() == next(same).read_bytes()


def test_what_is_refused(group, config, tmp_path):
  folder = group[0]
  done = run('train', config, folder.parent, '--config.rl.steps=3')
  assert done.status == 1
  assert f'{folder}/rl_math: made by another recipe or seed' in done.err
  done = run('evaluate', config, tmp_path)
  assert (
    f'{tmp_path}/seed_0 lacks models of the group\n  - base\n  - rl_math' in done.err
  )
  assert 'got sing, expected one of train, evaluate, ' in run('sing', config, '.').err
  values = {'kinds': ('sft', 'dpo')}
  with pytest.raises(InputError, match=r"'dpo': not one of .*\n  - no 'rl'"):
    group_recipe(values)
  with pytest.raises(InputError, match=r'unknown fields\n  - rl\.speed'):
    group_recipe({'rl': {'speed': 1}})


def test_evaluation_of_another_model_stands_beside_the_group(group, config):
  folder = group[0]
  done = run('evaluate', config, folder.parent, f'--models={folder}/base/bf16')
  rows = {
    line.split(' | ')[0][2:]: line for line in done.out.splitlines() if ' | ' in line
  }
  assert rows[f'{folder}/base/bf16'].endswith('| 0 | 0 | 100 |')


def test_comparison_of_groups(group, config, monkeypatch):
  entries = {'task_arithmetic': Entry('A.2', {'name': 'task_arithmetic'})}
  monkeypatch.setattr(lab, '_entries', lambda n: entries if n == 2 else {})

  def measure(_, kinds, folder, given, *others):
    assert (kinds, folder, others[0].name) == (['rl', 'sft'], group[0], wanted)
    right = {'math': np.arange(20) < 10}
    merges = dict.fromkeys(given, right)
    models = dict.fromkeys(MODELS, right)
    parts = {
      name: {'head': right['math'], 'residual': right['math']} for name in models
    }
    curves = {'head rank': {'k = 1': right}, 'budget': {'rho = 0': right}}
    factors = dict.fromkeys(given, 1.0)
    layers = {'0': {'S_H': 0.0, 's_R': 0.0, 'head share': 0.0}}
    return Measured({**models, **merges}, merges, factors, parts, curves, {}, layers)

  monkeypatch.setattr(compare, 'measure_group', measure)
  wanted = 'bf16'
  flags = ('--seeds=0', '--group=tiny', '--kinds=rl,sft')
  done = run('compare', config, group[0].parent, *flags)
  assert done.out == (group[0].parent / 'compare_tiny_rl_sft.md').read_text()
  names = [line.split(' | ')[0][2:] for line in done.out.splitlines() if '|' in line]
  assert names[2:6] == list(MODELS)
  assert names[8] == 'task_arithmetic'
  wanted = 'bf16_fp32'
  flags += ('--merge_precision=fp32',)
  done = run('compare', config, group[0].parent, *flags)
  assert (group[0].parent / 'compare_tiny_rl_sft_bf16_fp32.md').read_text() == done.out
  done = run('compare', config, group[0].parent, '--kinds=rl')
  assert done.err.endswith('compare: one expert is nothing to merge\n')
  done = run('compare', config, group[0].parent, '--kinds=rl,dpo')
  assert '--kinds: the config has no such experts\n  - dpo' in done.err


def test_experts_stop_where_one_fails(config, tmp_path, monkeypatch):
  """None is trained to its end that the error would have to wait for."""
  failed, said = threading.Event(), []

  def train(*given):
    task, say = given[1], given[-1]
    if task == 'math':
      failed.set()
      raise InputError('no')
    assert failed.wait(60)
    for step in range(600):
      said.append(step)
      say('step')
      time.sleep(0.1)

  monkeypatch.setattr(group_module, 'train_rl', train)
  monkeypatch.setattr(group_module, 'cores', lambda: 2)
  given = "--config.tasks=('math','math_low')", '--config.kinds=rl'
  done = run('train', config, tmp_path, *given)
  assert (done.status, done.err.splitlines()[-1]) == (1, 'error: no')
  assert len(said) < 600
