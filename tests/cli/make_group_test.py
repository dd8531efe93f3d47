"""The command that makes synthetic groups, run from a clone as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*args: object) -> subprocess.CompletedProcess[str]:
  command = [sys.executable, '-m', 'tools.make_group', *map(str, args)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_makes_the_group_that_flags_describe(tmp_path):
  done = run(
    f'--output={tmp_path}/g', '--experts=1', '--layers=1', '--tied=false', '--seed=3'
  )

  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.split() == [
    'base',
    f'{tmp_path}/g/base',
    'expert',
    f'{tmp_path}/g/expert_math',
  ]
  config = json.loads((tmp_path / 'g/expert_math/config.json').read_text())
  assert config['num_hidden_layers'] == 1
  assert config['tie_word_embeddings'] is False


def test_user_errors_have_no_traceback(tmp_path):
  failed = run(f'--output={tmp_path}', '--experts=0', '--layers=9')

  assert failed.returncode == 1
  assert failed.stderr.splitlines() == [
    'error: cannot make the expert group',
    '  - layers 9: expected 1 to 4',
    '  - 0 experts: expected at least 1',
  ]

  stray = run(f'--output={tmp_path}', 'tiny')
  assert stray.returncode == 1
  assert 'error: unexpected arguments\n  - tiny\n' in stray.stderr


def test_help_has_examples_and_flags():
  text = run('--help').stdout

  assert 'python -m tools.make_group --shape=qwen2.5-0.5b' in text
  assert '--layers: decoder layers (default: all of the model)' in text
