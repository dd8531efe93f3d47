"""docs/training_stacks.md, run from its first snippet to its last."""

import importlib
import pathlib
import re
import shlex

import pytest

from tests import commands, folders, groups
from tests.trees import models

DOC = pathlib.Path(__file__).parents[1] / 'docs' / 'training_stacks.md'


# So that every output equals the base, the experts do.
@pytest.mark.filterwarnings('ignore:experts? .* identical')
def test_every_snippet_runs(tmp_path, monkeypatch):
  base = models.tensors('qwen2')
  for name in ('BASE', 'MATH', 'CODE', 'MODEL'):
    folders.write_folder(tmp_path / name, base, config=models.config('qwen2'))
  monkeypatch.chdir(tmp_path)
  names: dict = {}
  blocks = re.findall(r'```(bash|python)\n(.*?)```', DOC.read_text(), re.DOTALL)
  assert {language for language, _ in blocks} == {'bash', 'python'}
  for language, text in blocks:
    if language == 'python':
      exec(text, names)
      continue
    for line in text.splitlines():
      *start, tool = shlex.split(line)[:3]
      assert start == ['python', '-m'], line
      command = importlib.import_module(tool.replace('tools.', 'resmerge_jax.cli.'))
      done = commands.run(command, *shlex.split(line)[3:])
      assert done.status == 0, done
  groups.assert_same_bits(groups.load(tmp_path / 'BACK'), base)
  groups.assert_same_bits(groups.load(tmp_path / 'AGAIN'), base)
