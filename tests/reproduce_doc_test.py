"""What docs/reproduce.md shows: its commands parse, and its merges plan."""

import contextlib
import importlib
import pathlib
import re
import shlex
from unittest import mock

import pytest

from resmerge_jax.cli import plan, scores
from resmerge_jax.cli.merge_flags import load_config
from resmerge_jax.config import config_from
from resmerge_jax.scores.categories import load_categories
from tests import commands, folders
from tests.scores import files

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'reproduce.md'
TEXT = PAGE.read_text()
MODELS = ('base', 'code', 'tool', 'memory')


def command_lines() -> list[str]:
  """All commands of this package, with $F put in."""
  lines = ''.join(re.findall(r'```bash\n(.*?)```', TEXT, re.S)).splitlines()
  (folders_of_F,) = [line[3:-1] for line in lines if line.startswith('F="')]
  lines += re.findall(r'`(python -m tools[^`]*)`', TEXT)
  assert all(re.match('python -m tools|hf download|F="', line) for line in lines)
  ours = [line for line in lines if line.startswith('python')]
  return [line.replace('$F', folders_of_F) for line in ours]


LINES = command_lines()
MERGES = [line for line in LINES if 'tools.merge' in line]


def words_of(line: str) -> tuple[str, list[str]]:
  _, _, tool, *words = shlex.split(line)
  return tool.replace('tools.', 'resmerge_jax.cli.'), words


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """A folder with models/base and so on, tiny, and the results of two models."""
  path = tmp_path_factory.mktemp('reproduce')
  for i, name in enumerate(MODELS):
    folders.write_folder(path / 'models' / name, folders.tensors(i))
  for name in ('base', 'resmerge'):
    files.results(path / 'logs' / name, files.EVALCHEMY)
    files.bfcl(path / 'score' / name)
  rows = {(m, c): v for m in ('Base', 'ResMerge') for c, v in files.MEMORY.items()}
  files.plain(path / 'memory.csv', rows)
  with contextlib.chdir(path):
    yield path


@pytest.mark.parametrize('line', LINES)
def test_flags_exist(line):
  name, words = words_of(line)
  command = importlib.import_module(name)
  with mock.patch.object(command, 'main', return_value=0) as main:
    done = commands.run(command, *words)
  assert (done.status, done.out, done.err) == (0, '', '')
  assert main.called


def test_every_setting_is_merged():
  taken = {name for line in MERGES for name in re.findall(r'--config=(\w+)', line)}
  page = (PAGE.parent / 'methods.md').read_text().partition('| `--config` | A.2')[2]
  stated = set(re.findall(r'^\| `(\w+)` \|', page.partition('\n\n')[0], re.M))
  assert len(stated) == 7
  assert stated | {'resmerge', 'resmerge_release'} <= taken
  outputs = [re.search(r'--output=(\S+)', line)[1] for line in MERGES]
  assert len(set(outputs[2:])) == len(outputs[2:]) == 13  # as the page counts them


@pytest.mark.usefixtures('models')
def test_merges_plan():
  for line in MERGES:
    if '--base' in line:
      done = commands.run(plan, *words_of(line)[1])
      assert (done.status, done.err) == (0, ''), line
      assert 'expert   memory' in done.out


def test_the_group_of_public_models():
  specs = re.findall(r'--config=(ram_qwen2_5\S*)', ' '.join(MERGES))
  assert len(specs) == 2
  for spec, method in zip(specs, ('resmerge', 'ties'), strict=True):
    config = config_from({**load_config(spec).to_dict(), 'output': 'merged'})
    assert config.base == 'hf://Qwen/Qwen2.5-7B-Instruct'
    names = [address.removeprefix('hf://') for address in config.experts]
    for name in (config.base.removeprefix('hf://'), *names):
      assert f'hf download {name} --local-dir models/' in TEXT
    assert load_config(spec).method.name == method


def test_table(models):
  (line,) = [line for line in LINES if 'tools.scores Base=' in line]
  done = commands.run(scores, *words_of(line)[1])
  assert (done.status, done.err) == (0, '')
  assert '—' not in done.out  # the commands of the page fill every column
  assert {path.suffix for path in models.glob('table.*')} == {'.md', '.html', '.csv'}


def test_the_tasks_are_those_of_the_table():
  (tasks,) = re.findall(r'--tasks (\S+)', TEXT)
  benchmarks = [b for row in load_categories().values() for b in row]
  wanted = {task for b in benchmarks for task, metric in b.harness if ',' not in metric}
  assert set(tasks.split(',')) == wanted
