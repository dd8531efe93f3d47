"""Sweeps: every folder is that of a merge of its setting; stops, resumes, extensions."""

import csv
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

import resmerge_jax
from resmerge_jax import MergeConfig, ResMerge, TaskArithmetic
from resmerge_jax.config import config_from
from resmerge_jax.errors import InputError
from resmerge_jax.parameters import make_method
from resmerge_jax.pipeline import loop, sweep_table
from resmerge_jax.pipeline.prepare import prepare
from resmerge_jax.pipeline.sweep import Swept, merge_sweep
from resmerge_jax.pipeline.sweep_plan import prepare_sweep
from resmerge_jax.plan.step_sizes import PROGRAM_BYTES
from resmerge_jax.writers.journal import Journal
from tests import groups, resumes, several
from tests.pipeline.merge_killed_test import loadable

# float32 shows what rounding to bfloat16 would hide.
SETTINGS: dict[str, Any] = {'max_shard_size': '60kB', 'output_dtype': 'float32'}
# The first solves and measures, the second takes both, the third the heads.
METHODS = {
  'plain': ResMerge(),
  'more': ResMerge(rho=0.5, head_gate='none'),
  'rank': ResMerge(rho=0.5, head_gate='none', head_rank=2),
}


def configs_of(
  group: groups.Group, folder: pathlib.Path, methods: dict[str, Any], **settings: Any
) -> dict[str, MergeConfig]:
  return {
    name: groups.config_of(group, folder / name, method=method, **settings)
    for name, method in methods.items()
  }


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return several.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='module')
def swept(group, tmp_path_factory) -> Swept:
  folder = tmp_path_factory.mktemp('swept') / 'out'
  return merge_sweep(configs_of(group, folder, METHODS, **SETTINGS))


def outputs(swept: Swept) -> dict[str, pathlib.Path]:
  return {name: manifest.output for name, manifest in swept.manifests.items()}


@pytest.mark.parametrize('name', METHODS)
def test_a_merge_from_the_manifest_has_the_same_bytes(swept, name, tmp_path):
  output = outputs(swept)[name]
  config = json.loads((output / 'manifest.json').read_text())['config']
  assert config['head_ranks'] == [1, 2]
  again = resmerge_jax.merge(config_from({**config, 'output': str(tmp_path / 'out')}))
  assert groups.weight_bytes(again.output) == groups.weight_bytes(output)
  assert groups.records(again.output) == groups.records(output)
  assert groups.config(again.output) == groups.config(output)
  ours, single = (
    {path.name for path in folder.iterdir()} for folder in (output, again.output)
  )
  assert ours == single
  exact = [r['name'] for r in groups.records(output) if any(r.get('float64_head', []))]
  assert exact == [several.CLOSE]


def test_heads_of_several_ranks_are_as_good_as_those_of_one(group, swept, tmp_path):
  """k = 1 from a solve for k = 2: other last bits, within what a head promises."""
  single = groups.merge(group, tmp_path / 'out', method=METHODS['plain'], **SETTINGS)
  assert 'head_ranks' not in single.content['config']
  ours, alone = groups.load(outputs(swept)['plain']), groups.load(single.output)
  base = groups.load(group.base)
  assert ours.keys() == alone.keys()
  for name, want in alone.items():
    if want.dtype != np.float32:
      np.testing.assert_array_equal(ours[name], want)
      continue
    update = np.linalg.norm(np.float64(want) - np.float64(base[name]))
    # MAX_ERROR of a head, and float32 of the sum W + U
    bound = 1e-4 * update + 2.0**-24 * np.linalg.norm(want)
    assert np.linalg.norm(np.float64(ours[name]) - np.float64(want)) <= bound
  for mine, theirs in zip(
    groups.records(outputs(swept)['plain']), groups.records(single.output), strict=True
  ):
    if 'sigma' in theirs:
      assert np.shape(mine['sigma']) == np.shape(theirs['sigma']) == (2, 1)
      np.testing.assert_allclose(mine['sigma'], theirs['sigma'], rtol=1e-5)
      assert max(mine['head_error_estimate']) <= 1e-4


def test_the_weights_are_read_once(swept):
  contents = [manifest.content for manifest in swept.manifests.values()]
  assert {swept.bytes_read} == {content['bytes_read'] for content in contents}
  assert [content['sweep']['setting'] for content in contents] == list(METHODS)


def test_the_table_has_the_means_of_the_records(swept):
  with swept.table.open() as file:
    rows = list(csv.DictReader(file))
  assert [row['setting'] for row in rows] == list(METHODS)
  assert [row['method.head_rank'] for row in rows] == ['1', '1', '2']
  assert 'method.variant' not in rows[0]
  for row, output in zip(rows, outputs(swept).values(), strict=True):
    records = groups.records(output)
    alpha = [r['alpha_R'] for r in records if 'alpha_R' in r]
    np.testing.assert_allclose(float(row['mean alpha_R']), np.mean(alpha), rtol=1e-14)
    norms = [r['update_norm'] for r in records if 'update_norm' in r]
    np.testing.assert_allclose(
      float(row['update_norm']), np.linalg.norm(norms), rtol=1e-14
    )
    assert int(row['branch consensus']) == len(alpha)
    assert int(row['float64_heads']) == 2
  assert swept.notes == ()
  picture = (swept.table.parent / 'sweep.png').read_bytes()
  assert picture.startswith(b'\x89PNG')


def test_without_matplotlib_the_table_is_written_and_a_note_says_so(
  swept, tmp_path, monkeypatch
):
  monkeypatch.setattr(sweep_table.importlib.util, 'find_spec', {}.get)
  config = groups.config_of(groups.Group('b', ('e',)), outputs(swept)['plain'])
  notes = sweep_table.write_table(tmp_path, {'plain': config})
  assert 'resmerge_jax[plots]' in notes[0]
  assert [path.name for path in tmp_path.iterdir()] == ['sweep.csv']


SCALES = {f'scale-{s}': TaskArithmetic(scale=s) for s in (0.5, 1.0, 2.0)}


# Two stacks are computed: with their programs what is left is for steps as small.
BUDGET = resumes.SETTINGS['memory_budget'] + 2 * 2 * PROGRAM_BYTES
STEPS = {**resumes.SETTINGS, 'memory_budget': BUDGET}


@pytest.fixture(scope='module')
def plain_group(tmp_path_factory) -> groups.Group:
  return resumes.write_group(tmp_path_factory.mktemp('plain'))


def stop(
  configs: dict[str, MergeConfig], monkeypatch, n_lines: int, error: Any
) -> None:
  """A sweep that ends by `error` when its journals have so many lines."""
  add, added = Journal.add, []

  def stopping(self, entry, files):
    if len(added) == n_lines:
      raise error
    added.append(entry)
    add(self, entry, files)

  with monkeypatch.context() as patch:
    patch.setattr(Journal, 'add', stopping)
    with pytest.raises(type(error)):
      merge_sweep(configs)


def test_a_stopped_sweep_shows_nothing_and_is_resumed(
  plain_group, tmp_path, monkeypatch
):
  whole = merge_sweep(configs_of(plain_group, tmp_path / 'whole', SCALES, **STEPS))
  folder = tmp_path / 'out'
  configs = configs_of(plain_group, folder, SCALES, **STEPS)
  stop(configs, monkeypatch, 7, KeyboardInterrupt())
  assert {path.name for path in folder.iterdir()} == {
    f'.{name}.resmerge-partial' for name in SCALES
  }
  assert not loadable(folder)
  steps = {len(resumes.lines(config.output)) - 1 for config in configs.values()}
  assert steps == {2, 3}  # in the middle of a step: some settings have it
  resumed = merge_sweep(_resuming(configs))
  for name, output in outputs(resumed).items():
    assert groups.weight_bytes(output) == groups.weight_bytes(outputs(whole)[name])
    assert groups.records(output) == groups.records(outputs(whole)[name])
    notes = '\n'.join(resumed.manifests[name].notes)
    assert f'resuming: {3 if name == "scale-0.5" else 2} of ' in notes


def _resuming(configs: dict[str, MergeConfig]) -> dict[str, MergeConfig]:
  return {
    name: dataclasses.replace(config, resume=True) for name, config in configs.items()
  }


def test_a_complete_sweep_is_verified_and_extended(plain_group, tmp_path, monkeypatch):
  folder = tmp_path / 'out'
  configs = configs_of(plain_group, folder, SCALES, max_shard_size='10kB')
  first = dict(list(configs.items())[:2])
  done = merge_sweep(first)
  before = {name: resumes.contents(output) for name, output in outputs(done).items()}
  turns = []
  dispatch = loop._dispatch

  def counted(*args):
    turns.append(args[1].settings)
    return dispatch(*args)

  monkeypatch.setattr(loop, '_dispatch', counted)
  more = merge_sweep(_resuming(configs))
  assert set(turns) == {(2,)}  # nothing is computed for the others
  verified = {name: m.verified_only for name, m in more.manifests.items()}
  assert verified == {'scale-0.5': True, 'scale-1.0': True, 'scale-2.0': False}
  for name, content in before.items():
    assert resumes.contents(outputs(more)[name]) == content
  turns.clear()
  again = merge_sweep(_resuming(configs))
  assert all(manifest.verified_only for manifest in again.manifests.values())
  assert not turns


def test_bad_input_leaves_nothing(tmp_path):
  group = several.write_group(tmp_path / 'in')
  several.spoil_last_row(group.experts[1], 'lm_head.weight')
  configs = configs_of(group, tmp_path / 'out', SCALES)
  with pytest.raises(InputError, match='NaN or Inf in the weights'):
    merge_sweep(configs)
  assert not (tmp_path / 'out').exists()


def test_posts_and_scans(plain_group, tmp_path):
  """Settings of one method read its scan once; a post's is its own."""
  ties = make_method('ties', {'flavour': 'official'})
  common = {'output_dtype': 'float32'}
  posts = {eta: (('lines', {'beta': 0.5}), ('liti', {'eta': eta})) for eta in (0.3, 1)}
  configs = {
    f'eta-{eta}': groups.config_of(
      plain_group, tmp_path / f'eta-{eta}', method=ties, post=post, **common
    )
    for eta, post in posts.items()
  }
  swept = merge_sweep(configs)
  single = groups.merge(
    plain_group, tmp_path / 'one', method=ties, post=posts[0.3], **common
  )
  ours = outputs(swept)['eta-0.3']
  assert groups.weight_bytes(single.output) == groups.weight_bytes(ours)
  assert groups.records(single.output) == groups.records(ours)
  one, read = single.content['bytes_read'], swept.bytes_read
  n_scans = len(single.content['scans'])
  assert one < read < 2 * one
  assert n_scans > 1


def test_settings_of_different_plans_are_refused(plain_group, tmp_path):
  names = {'iso': 'iso_c', 'mean': 'task_arithmetic'}
  methods = {key: make_method(name, {}) for key, name in names.items()}
  with pytest.raises(InputError) as error:
    merge_sweep(configs_of(plain_group, tmp_path / 'out', methods))
  assert error.value.problems == ('mean',)
  assert "need another plan than 'iso'" in str(error.value)
  assert not (tmp_path / 'out').exists()


def test_a_sweep_saves_no_recipes(plain_group, tmp_path):
  with pytest.raises(InputError, match='a sweep saves no recipes'):
    merge_sweep(configs_of(plain_group, tmp_path / 'out', SCALES, save_recipe=True))


def test_the_folder_of_a_model_is_refused(plain_group, tmp_path):
  merged = groups.merge(plain_group, tmp_path / 'out', method=groups.MEAN).output
  with pytest.raises(InputError, match='is the folder of a model'):
    merge_sweep(configs_of(plain_group, merged, SCALES, overwrite=True))
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'note').touch()
  with pytest.raises(InputError, match='is not empty'):
    merge_sweep(configs_of(plain_group, tmp_path / 'other', SCALES))


def test_a_disk_too_small_for_all_is_refused(plain_group, tmp_path, monkeypatch):
  """Each alone would fit."""
  configs = configs_of(plain_group, tmp_path / 'out', SCALES)
  one = sum(path.stat().st_size for path in plain_group.base.glob('*.safetensors'))
  usage = type('Usage', (), {'free': int(2.5 * one)})
  monkeypatch.setattr('shutil.disk_usage', lambda _: usage)
  with pytest.raises(InputError, match='not enough space'):
    merge_sweep(configs)


def test_head_ranks_must_hold_the_methods_own():
  with pytest.raises(InputError, match='expected ranks from 1 to 64 and 1 among them'):
    MergeConfig('b', ('e',), head_ranks=(2, 4))
  with pytest.raises(InputError, match='none among them'):
    MergeConfig('b', ('e',), method=groups.MEAN, head_ranks=(1,))


def test_the_plan_knows_the_number_of_settings(group, tmp_path):
  """One output is computed while another is written, and each brings its programs."""
  scales = {f's{i}': TaskArithmetic(scale=i) for i in range(1, 8)}
  peaks = []
  for n in (2, 7):
    methods = dict(list(scales.items())[:n])
    prepared = prepare_sweep(configs_of(group, tmp_path / 'out', methods))
    assert len({each.plan.fingerprint for each in prepared.values()}) == n
    peaks.append(max(each.plan.peak_memory for each in prepared.values()))
  config = groups.config_of(group, tmp_path / 'out', method=scales['s1'])
  single = prepare(config).plan
  assert single.fingerprint == prepared['s1'].plan.fingerprint
  computed = sum(stack.action != 'base' for stack in single.stacks)
  assert peaks[1] - peaks[0] == 5 * computed * PROGRAM_BYTES
  largest = max(s.layers * s.n_rows * s.n_cols for s in single.stacks)
  output = 2 * largest  # bfloat16, once more
  assert peaks[0] - single.peak_memory == output + computed * PROGRAM_BYTES
  tight = configs_of(group, tmp_path / 'out', scales, memory_budget=single.peak_memory)
  with pytest.raises(InputError, match='the largest matrix needs'):
    prepare_sweep(tight)
