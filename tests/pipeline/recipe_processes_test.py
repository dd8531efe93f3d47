"""Recipes saved by several processes, and arrays on devices of several."""

import json

import jax
import numpy as np
import pytest

import resmerge_jax
from tests import groups, launches, several
from tests.pipeline.load_merged_test import folder, group  # noqa: F401 (fixtures)

SAVED = {
  'together': {'mesh': 'layer:2,row:4'},
  'whole': {'whole_files': True, 'max_shard_size': '20kB'},
}
SCRIPT = """
import json, pathlib, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import resmerge_jax
from resmerge_jax import processes
from resmerge_jax.config import config_from
flags = dict(word[2:].split('=', 1) for word in sys.argv[2:])
me = int(flags['process_id'])
processes.start(flags['coordinator'], int(flags['num_processes']), me)
merges, recipe, base, experts = json.loads(sys.argv[1])
for values in merges:
  resmerge_jax.merge(config_from(values))
mesh = jax.make_mesh((2, 4), ('layer', 'row'), axis_types=(AxisType.Auto,) * 2)
rows = NamedSharding(mesh, PartitionSpec(('layer', 'row')))
mine = jax.sharding.SingleDeviceSharding(jax.devices()[-1])  # of the last process
target = {}
for name in json.loads(pathlib.Path(recipe, 'recipe.json').read_text())['tensors']:
  target[name] = rows if name.endswith('up_proj.weight') else mine
made = resmerge_jax.Recipe(recipe, base, tuple(experts))
arrays = resmerge_jax.load_merged(made, mesh, target)
np.savez(f'part{me}.npz', **{
  f'{name}:{s.index[0].start or 0}': np.asarray(s.data).view(np.uint16)
  for name, x in arrays.items() for s in x.addressable_shards
})
scanned = resmerge_jax.merge_state_dicts(
  {'w.weight': np.ones((4, 8), np.float32)},
  [{'w.weight': np.arange(32, dtype=np.float32).reshape(4, 8)}], method='ties',
)
print(float(scanned.tensors['w.weight'].sum()))
"""


@pytest.fixture(scope='module')
def ran(group, folder, tmp_path_factory):  # noqa: F811
  work = tmp_path_factory.mktemp('two')
  inputs = str(group.base), [str(path) for path in group.experts]
  shared = {**several.SETTINGS, 'save_recipe': True}
  merges = [
    {'base': inputs[0], 'experts': inputs[1], 'output': name, **shared, **settings}
    for name, settings in SAVED.items()
  ]
  words = [json.dumps([merges, str(folder / 'recipe'), *inputs])]
  ended = launches.run(work, launches.joining(2, words), devices=4, script=SCRIPT)
  assert [(each.status, each.err) for each in ended] == [(0, '')] * 2
  return work, ended


@pytest.mark.parametrize('name', SAVED)
def test_what_two_processes_save_gives_their_merge(ran, group, tmp_path, name):  # noqa: F811
  output = ran[0] / name
  files = {path.name for path in (output / 'recipe').iterdir()}
  assert len(files) > 2 if name == 'whole' else len(files) == 2
  recipe = resmerge_jax.Recipe(output / 'recipe', group.base, group.experts)
  again = resmerge_jax.apply_recipe(recipe, tmp_path / 'out').output
  assert groups.weight_bytes(again) == groups.weight_bytes(output)


def test_each_process_holds_its_parts(ran, folder):  # noqa: F811
  parts = [dict(np.load(ran[0] / f'part{i}.npz')) for i in range(2)]
  for name, whole in groups.load(folder).items():
    held = [
      (int(key.rpartition(':')[2]), x, i)
      for i, part in enumerate(parts)
      for key, x in part.items()
      if key.rpartition(':')[0] == name
    ]
    split = name.endswith('up_proj.weight')
    assert [i for *_, i in held] == ([0] * 4 + [1] * 4 if split else [1])
    for start, x, _ in held:
      np.testing.assert_array_equal(
        x, whole.view(np.uint16)[start : start + len(x)], err_msg=name
      )


def test_scans_of_arrays_in_memory_count_once(ran):
  """Each process makes all of it: their sums are not added up."""
  alone = resmerge_jax.merge_state_dicts(
    {'w.weight': np.ones((4, 8), np.float32)},
    [{'w.weight': np.arange(32, dtype=np.float32).reshape(4, 8)}],
    method='ties',
  )
  total = float(alone.tensors['w.weight'].sum())
  assert [float(each.out.splitlines()[-1]) for each in ran[1]] == [total] * 2
  assert jax.process_count() == 1
