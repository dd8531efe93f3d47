"""The benchmark command, end to end on a tiny group."""

import json
import shutil

from resmerge_jax.bench import rounds
from resmerge_jax.cli import bench
from tests import commands, groups


def test_floor_full_svd_and_ours_in_turn(tmp_path, monkeypatch):
  check = rounds._check_output

  def keep(rival):
    check(rival)
    shutil.copytree(rival.output, tmp_path / rival.name, dirs_exist_ok=True)

  monkeypatch.setattr(rounds, '_check_output', keep)
  monkeypatch.chdir(tmp_path)
  done = commands.run(
    bench,
    '--shape=tiny',
    '--layers=1',
    '--n_experts=2',
    '--rivals=floor,full_svd',
    '--repeat=1',
    '--work_dir=work',
    f'--json={tmp_path}/raw.json',
  )

  assert done.status == 0, done.err
  text = done.out
  for name in ('floor', 'import_jax', 'full_svd', 'ours_first', 'ours'):
    assert f'\n  {name} ' in text
    assert f'tiny: 1 layer, 2 experts: round 1 of 1: {name} ' in done.err
  assert '\n  ours / (floor + import jax) ' in text
  assert '\n  full SVD / ours, per layer, whole processes ' in text

  (case,) = json.loads((tmp_path / 'raw.json').read_text())['cases']
  samples = {sample['name']: sample for sample in case['samples']}
  told = samples['ours']['details']
  phases = ('startup', 'until_commit', 'commit')
  assert all(told[name] > 0 for name in phases)
  inside = sum(told[name] for name in phases)
  assert inside < 1.05 * samples['ours']['seconds']
  assert told['bytes_written'] == samples['ours_first']['details']['bytes_written']
  assert samples['full_svd']['details']['matrices'] == 7
  assert samples['ours']['anonymous'] > samples['floor']['anonymous'] > 0
  ours, exact = groups.load(tmp_path / 'ours'), groups.load(tmp_path / 'full_svd')
  assert set(exact) == {name for name in ours if '.layers.0.' in name}
  for name, value in exact.items():
    groups.assert_within_a_unit(ours[name], value, share=0.003, name=name)
  # Groups stay for the next run, outputs and caches do not.
  assert [path.name for path in (tmp_path / 'work').iterdir()] == ['groups']


def test_errors_and_help(tmp_path):
  failed = commands.run(bench, '--rivals=paper', '--repeat=0', f'--work_dir={tmp_path}')
  assert failed.status == 1
  assert failed.err.splitlines() == [
    'error: cannot run this benchmark',
    "  - rival 'paper': expected some of floor, mergekit, full_svd",
    '  - repeat 0: expected 1 or more',
  ]
  stray = commands.run(bench, 'tiny')
  assert 'error: unexpected arguments\n  - tiny\n' in stray.err
  shape = commands.run(bench, '--shape=gpt-2')
  assert "error: shape 'gpt-2': expected one of tiny, qwen2.5-0.5b" in shape.err

  shown = commands.run(bench, '--help')
  assert shown.status == 0
  assert 'python -m tools.bench --shape=qwen2.5-0.5b' in shown.out
  assert '--svd_layers: layers that full_svd merges' in shown.out
