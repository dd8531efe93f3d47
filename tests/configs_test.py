"""Every bundled config loads, and plans a merge of a tiny group."""

import json

import pytest

from resmerge_jax.cli import plan
from resmerge_jax.cli.config_file import bundled_configs, config_folder, load_config
from resmerge_jax.parameters import make_method
from tests import commands, folders, groups
from tests.cli.merge_test import flags_of

STEMS = sorted(path.stem for path in config_folder().glob('*.py'))
CONFIGS = [stem for stem in STEMS if not stem.startswith('lab_')]


def test_all_files_are_bundled():
  assert bundled_configs() == CONFIGS
  assert sorted(CONFIGS + bundled_configs(lab=True)) == STEMS
  assert 'resmerge' in CONFIGS


@pytest.mark.parametrize('name', CONFIGS)
def test_dry_run(name, tmp_path):
  config = load_config(name).to_dict()
  make_method(config['method'].pop('name'), config['method'])
  group = groups.write(tmp_path, folders.tensors(), [folders.tensors(1)])
  flags = flags_of(group, tmp_path / 'out')
  by_name = commands.run(plan, f'--config={name}', '--json', *flags)
  assert (by_name.status, by_name.err) == (0, '')
  assert len(json.loads(by_name.out)['tensors']) == len(folders.tensors())
  path = config_folder() / f'{name}.py'
  assert commands.run(plan, f'--config={path}', '--json', *flags) == by_name
