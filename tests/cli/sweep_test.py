"""--sweep on the command line: names, folders, the dry run, and what is refused."""

import json

import pytest

from resmerge_jax.cli import merge, plan
from tests import commands, groups, resumes
from tests.cli.merge_test import assert_refused, flags_of


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return resumes.write_group(tmp_path_factory.mktemp('group'))


def planned(group, folder, *args) -> dict:
  done = commands.run(plan, '--json', *flags_of(group, folder), *args)
  assert (done.status, done.err) == (0, ''), done
  return json.loads(done.out)['sweep']


def names(sweep: dict) -> list[str]:
  return [setting['name'] for setting in sweep['settings']]


def test_a_dry_run_shows_folders_and_bytes(group, tmp_path):
  lists = ('--sweep=method.rho=0.1,0.2', '--sweep=method.head_rank=1,4')
  sweep = planned(group, tmp_path / 'out', *lists)
  assert names(sweep) == [
    'rho-0.1__head_rank-1', 'rho-0.1__head_rank-4',
    'rho-0.2__head_rank-1', 'rho-0.2__head_rank-4',
  ]  # fmt: skip
  each = {setting['bytes_written'] for setting in sweep['settings']}
  assert sweep['bytes_written'] == 4 * each.pop()
  single = json.loads(
    commands.run(plan, '--json', *flags_of(group, tmp_path / 'out')).out
  )
  assert sweep['bytes_read'] == single['bytes_read']
  text = commands.run(plan, *flags_of(group, tmp_path / 'out'), *lists).out
  assert 'a sweep of 4 settings' in text
  assert str(tmp_path / 'out' / 'rho-0.2__head_rank-4') in text
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['method.family_scale.ffn=-1,1e-3'], ['ffn-m1', 'ffn-0.001']),
    (['seed=0,1'], ['seed-0', 'seed-1']),
    (['method.variant=paper,release'], ['variant-paper', 'variant-release']),
  ],
)
def test_names(group, tmp_path, flags, expected):
  sweeps = [f'--sweep={text}' for text in flags]
  assert names(planned(group, tmp_path / 'out', *sweeps)) == expected


def test_weights_outside_and_posts(group, tmp_path):
  sweep = planned(
    group,
    tmp_path / 'out',
    '--method=task_arithmetic',
    '--post=liti:eta=0.1',
    '--post=lines:beta=0.5',
    '--sweep=weights=1/1/1,1/0:1/2',
    '--sweep=post.liti.eta=0.5,1',
  )
  assert names(sweep)[-1] == 'weights-1_0_1_2__eta-1'
  assert len(names(sweep)) == 4


def test_merges_and_shows_what_it_made(group, tmp_path):
  folder = tmp_path / 'out'
  flags = [*flags_of(group, folder), '--method=task_arithmetic', '--sweep']
  done = commands.run(merge, *flags, 'method.scale=0.5,2')
  assert (done.status, done.err) == (0, ''), done
  assert f'{folder / "scale-2"}: merged' in done.out
  assert f'{folder / "sweep.csv"}: 2 settings merged in ' in done.out
  assert done.out.count('are identical: one update counts twice') == 1
  config = json.loads((folder / 'scale-2' / 'manifest.json').read_text())['config']
  assert config['method']['scale'] == 2
  assert config['output'] == str(folder / 'scale-2')
  assert 'sweep' not in config
  assert sorted(path.name for path in folder.iterdir()) == [
    'scale-0.5', 'scale-2', 'sweep.csv', 'sweep.png',
  ]  # fmt: skip
  again = commands.run(merge, *flags, 'method.scale=0.5,2', '--resume')
  assert (again.status, again.err) == (0, '')
  assert 'nothing to do, all settings are complete' in again.out
  assert_refused(commands.run(merge, *flags, 'method.scale=0.5,2'), 'is not empty')


def test_the_papers_ablations_and_a_list_beside_them(group, tmp_path):
  flags = '--config=ablations', '--sweep=method.beta_min=0.5,0.7'
  found = names(planned(group, tmp_path / 'out', *flags))
  assert len(found) == 10
  assert found[0] == 'full__beta_min-0.5'
  assert found[-1] == 'head_only_mean__beta_min-0.7'


@pytest.mark.parametrize(
  ('flags', 'texts'),
  [
    (['method.rho'], ['expected a field and its values']),
    (['method.rho=0.1,,0.2'], ['expected a field and its values']),
    (['method.rho=1,2', 'method.rho=3'], ['fields swept twice', 'method.rho']),
    (
      ['output_dtype=float32,base', 'experts=a,b', 'rules=1', 'method.name=ties,ram'],
      [
        'fields that cannot be swept',
        '- experts',
        '- method.name',
        '- output_dtype',
        '- rules',
        'sweep method.FIELD, post.NAME.FIELD, outside.FIELD, weights, seed',
      ],
    ),
    (
      ['method.rhoo=1,2'],
      ["unknown field\n  - 'rhoo' (did you mean 'rho'?)", "setting 'rhoo-1' of the"],
    ),
    (['method.rho=0.1,-1'], ['0 <= rho, finite: got -1', "in setting 'rho-m1'"]),
    (['method.rho=0.1,high'], ["rho: got 'high' (str), expected float"]),
    (['method.rho=0.1,0.1'], ["setting 'rho-0.1' of the sweep", 'two settings']),
    (['method.rho=0,0.0'], ["'rho-0' and 'rho-0.0' of the sweep are the same merge"]),
    (['post.liti.eta=0.1,1'], ["0 post-processors named 'liti' are given"]),
    (['weights=1/1/1,1/2/1'], ['weights: resmerge defines none']),
  ],
)
def test_refused_before_anything_is_opened(tmp_path, flags, texts):
  folders = ['--base=absent', '--experts=a,b,c', f'--output={tmp_path / "out"}']
  done = commands.run(plan, *folders, *[f'--sweep={text}' for text in flags])
  assert_refused(done, *texts)


def test_a_sweep_of_a_shape_or_for_a_topology_is_refused():
  done = commands.run(plan, '--shape=qwen2.5-0.5b', '--sweep=method.rho=1,2')
  assert_refused(done, '--shape needs no folders', '--sweep')


def test_a_config_file_with_settings_that_have_no_name(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(
    'import ml_collections\n'
    'def get_config():\n'
    "  return ml_collections.ConfigDict({'sweep': ({'method': {'rho': 1.0}},)})\n"
  )
  done = commands.run(plan, f'--config={path}', '--base=b', '--experts=e', '--output=o')
  assert_refused(
    done, 'config.sweep: got', 'expected settings with a name of their own'
  )
