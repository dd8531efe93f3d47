"""tools.diagnose: what it prints, writes and refuses, from sources and merged folders."""

import csv
import json

import numpy as np
import pytest

from resmerge_jax import ResMerge
from resmerge_jax.cli import diagnose
from resmerge_jax.diagnostics import folder as diagnosis_folder
from resmerge_jax.diagnostics.diagnosis import from_plain, to_plain
from resmerge_jax.diagnostics.folder import read_diagnosis
from tests import commands, groups, launches, several

DATA = {'diagnostics.csv', 'diagnostics.json'}
UP = 'model.layers.0.mlp.up_proj.weight'


@pytest.fixture(scope='module')
def group(tmp_path_factory):
  return several.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='module')
def merged(group, tmp_path_factory):
  output = tmp_path_factory.mktemp('merged') / 'm'
  groups.merge(group, output, method=ResMerge(variant='release'))
  return output


@pytest.fixture(scope='module')
def done(group, merged, tmp_path_factory):
  """The merge and its sources: with all that there is."""
  output = tmp_path_factory.mktemp('done') / 'out'
  return run(output, f'--merged={merged}', *sources(group)), output


def sources(group):
  return f'--base={group.base}', f'--experts={group.experts[0]},{group.experts[1]}'


def run(output, *flags):
  done = commands.run(diagnose, *flags, f'--output={output}')
  assert done.status == 0, done.err
  return done.out


def rows(folder):
  with (folder / 'diagnostics.csv').open() as file:
    return {(row['group'], row['name']): row for row in csv.DictReader(file)}


def test_the_summary(done):
  out, folder = done
  lines = out.splitlines()
  assert lines[0] == 'm: 2 experts of base, 15 tensors, 6 matrices with heads'
  assert lines[2].split()[:3] == ['expert', '||D||', 'relative']
  assert [line.split()[0] for line in lines[3:5]] == ['e0', 'e1']
  assert 'merged by resmerge' in out
  assert 'note: In 1 tensor the head of some expert ends at a near tie' in out
  assert {file.name for file in folder.iterdir()} >= DATA


def test_the_table_has_a_row_per_tensor(done, group):
  _, folder = done
  table = rows(folder)
  assert len(table) == len(groups.load(group.base))
  row = table['m', UP]
  assert row['shape'] == '96x80'
  assert row['branch'] in ('consensus', 'mean')
  for column in (
    'delta_norm[e0]',
    'cos_head_pairs[e0|e1]',
    'energy[e1][4]',
    'distance[e1]',
  ):
    assert np.isfinite(float(row[column])), column
  assert table['m', 'model.position_ids']['delta_norm[e0]'] == ''


def test_the_data_come_back(done):
  _, folder = done
  diagnosis = read_diagnosis(folder)
  assert from_plain(json.loads(json.dumps(to_plain(diagnosis)))) == diagnosis
  (found,) = diagnosis.groups
  assert found.expert_ids == ('e0', 'e1')
  assert found.merge['method']['variant'] == 'release'
  record = next(r for r in found.records if r['name'] == UP)
  assert set(found.totals['by_layer']) == {'0', '1', '2'}
  assert record['alpha_R'] > 0


def test_a_merge_alone_says_what_it_did_not_record(merged, done, tmp_path):
  out = run(tmp_path / 'out', f'--merged={merged}')
  assert 'not recorded by the merge: norms relative to the weights; cosines' in out
  (found,) = read_diagnosis(tmp_path / 'out').groups
  (measured,) = read_diagnosis(done[1]).groups
  for got, want in zip(found.records, measured.records, strict=True):
    if got['name'] == several.CLOSE:
      continue  # a head of two equal directions
    for field in ('delta_norm', 'sigma', 's_R', 'norm_R', 'stable_rank', 'alpha_R'):
      if field in want or field in got:
        # Summed in another order, in float32.
        np.testing.assert_allclose(got[field], want[field], rtol=1e-4, atol=1e-5)


def test_groups_side_by_side(group, tmp_path):
  base, *experts = (group.base, *group.experts)
  out = run(
    tmp_path / 'out',
    f'--group=both={base},{experts[0]},{experts[1]}',
    f'--group=turned={base},{experts[1]},{experts[0]}',
  )
  assert 'both: 2 experts of base' in out
  assert 'turned: 2 experts of base' in out
  both, turned = read_diagnosis(tmp_path / 'out').groups
  assert both.totals['delta_norm'] == turned.totals['delta_norm'][::-1]


def test_two_processes_measure_what_one_does(group, done, tmp_path):
  words = [*sources(group), f'--output={tmp_path / "out"}', '--mesh=layer:2,row:4']
  script = 'from resmerge_jax.cli import diagnose; diagnose.run()'
  args = launches.joining(2, words)
  for ended in launches.run(tmp_path / 'w', args, devices=4, script=script):
    assert ended.status == 0, ended.err
  (found,) = read_diagnosis(tmp_path / 'out').groups
  (want,) = read_diagnosis(done[1]).groups
  assert [r['name'] for r in found.records] == [r['name'] for r in want.records]
  for field in ('delta_norm', 'changed', 'cos_delta_pairs', 'below_step'):
    np.testing.assert_allclose(found.totals[field], want.totals[field], rtol=1e-5)
  assert {path.name for path in tmp_path.iterdir()} == {'out', 'w', 'w-logs'}


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], 'nothing to diagnose'),
    (['--base=B'], '--base and --experts go together'),
    (['--merged=M', '--group=A=B,C'], '--group and --merged: not together'),
    (['--group=A=B'], '--group=A=B: got no name, base and experts'),
    (['--group=A=B,C', '--group=A=B,D'], 'groups need different names'),
    (['--merged=M', '--expert_ids=a'], '--expert_ids goes with --base and --experts'),
    (['--merged=M,N', '--base=B', '--experts=E'], 'one merged folder can be measured'),
  ],
)
def test_flags_that_do_not_go_together(flags, message, tmp_path):
  done = commands.run(diagnose, *flags, f'--output={tmp_path / "out"}')
  assert done.status == 1
  assert message in done.err
  assert not list(tmp_path.iterdir())


def test_an_output_must_be_named(group):
  assert 'no output given' in commands.run(diagnose, *sources(group)).err


def test_a_merge_of_others_is_refused(group, merged, tmp_path):
  flags = f'--merged={merged}', f'--base={group.base}', f'--output={tmp_path / "out"}'
  turned = commands.run(
    diagnose, *flags, f'--experts={group.experts[1]},{group.experts[0]}'
  )
  assert f'{merged}: not merged of these checkpoints' in turned.err
  one = commands.run(diagnose, *flags, f'--experts={group.experts[1]}')
  assert 'merged of 2 experts, 1 given' in one.err
  nothing = commands.run(diagnose, f'--merged={group.base}', flags[-1])
  assert 'give the output folder of a merge' in nothing.err
  assert not list(tmp_path.iterdir())


def test_an_output_in_the_way(merged, tmp_path):
  output = tmp_path / 'out'
  output.mkdir()
  (output / 'mine').touch()
  flags = f'--merged={merged}', f'--output={output}'
  assert 'pass --overwrite' in commands.run(diagnose, *flags).err
  assert commands.run(diagnose, *flags, '--overwrite').status == 0
  assert not (output / 'mine').exists()
  assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_a_failed_run_leaves_nothing(merged, tmp_path, monkeypatch):
  def full(_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(diagnosis_folder, 'as_csv', full)
  done = commands.run(diagnose, f'--merged={merged}', f'--output={tmp_path / "out"}')
  assert done.status == 1
  assert 'No space left on device' in done.err
  assert not list(tmp_path.iterdir())
