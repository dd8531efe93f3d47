"""Merged parameters as sharded arrays: the bytes of the folder that `merge` writes."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import resmerge_jax
from resmerge_jax import Recipe
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline import array_sink
from tests import folders, groups, several

EMBEDDING = 'model.embed_tokens.weight'
UP = 'model.layers.0.mlp.up_proj.weight'
NORM = 'model.layers.0.input_layernorm.weight'


@pytest.fixture(scope='module')
def mesh() -> jax.sharding.Mesh:
  return jax.make_mesh((2, 4), ('fsdp', 'tp'), axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  """Without its 64-bit integers."""
  group = several.write_group(tmp_path_factory.mktemp('several'))
  weights = [groups.load(path) for path in (group.base, *group.experts)]
  for each in weights:
    del each['model.position_ids']
  path = tmp_path_factory.mktemp('group')
  return groups.write(path, weights[0], weights[1:], tie_word_embeddings=False)


@pytest.fixture(scope='module')
def folder(group, tmp_path_factory):
  output = tmp_path_factory.mktemp('saved') / 'out'
  return groups.merge(group, output, save_recipe=True, **several.SETTINGS).output


def config_of(group, **settings) -> resmerge_jax.MergeConfig:
  return resmerge_jax.MergeConfig(group.base, group.experts, **settings)


def numpy(arrays):
  return {name: np.asarray(array) for name, array in arrays.items()}


def test_a_merge_onto_a_mesh(group, folder, mesh):
  """Row blocks of embeddings, and a head that is solved again on the host."""
  arrays = resmerge_jax.load_merged(config_of(group, **several.SETTINGS), mesh)
  groups.assert_same_bits(numpy(arrays), groups.load(folder))
  axes = ('fsdp', 'tp')
  assert arrays[UP].sharding == NamedSharding(mesh, PartitionSpec(axes))
  # 1055 rows are not divided by eight devices, 80 columns are.
  assert arrays[EMBEDDING].sharding == NamedSharding(mesh, PartitionSpec(None, axes))
  assert {s.data.shape for s in arrays[EMBEDDING].addressable_shards} == {(1055, 10)}


def test_a_recipe_onto_a_target(group, folder, mesh):
  base = groups.load(group.base)
  target = {name: PartitionSpec() for name in base}
  target[UP] = PartitionSpec('tp', 'fsdp')
  target[EMBEDDING] = jax.ShapeDtypeStruct(
    (several.VOCAB, several.COLS),
    jax.numpy.bfloat16,
    sharding=NamedSharding(mesh, PartitionSpec(None, 'tp')),
  )
  target[NORM] = jax.sharding.SingleDeviceSharding(jax.devices()[5])
  recipe = Recipe(folder / 'recipe', group.base, group.experts)
  arrays = resmerge_jax.load_merged(recipe, mesh, target)
  groups.assert_same_bits(numpy(arrays), groups.load(folder))
  assert arrays[UP].sharding == NamedSharding(mesh, target[UP])
  assert {s.data.shape for s in arrays[UP].addressable_shards} == {(24, 40)}
  assert arrays[EMBEDDING].sharding == target[EMBEDDING].sharding
  assert arrays[NORM].devices() == {jax.devices()[5]}


def test_the_host_holds_unfinished_tensors_only(group, folder, monkeypatch):
  most, write = 0, array_sink.ArraySink.write

  def watched(self, *args):
    nonlocal most
    write(self, *args)
    most = max(most, sum(x.nbytes for x in self._host.values()))

  monkeypatch.setattr(array_sink.ArraySink, 'write', watched)
  recipe = Recipe(folder / 'recipe', group.base, group.experts)
  arrays = resmerge_jax.load_merged(recipe)
  # Blocks of the embedding come one after the other: nothing else waits meanwhile.
  assert most == arrays[EMBEDDING].nbytes < sum(x.nbytes for x in arrays.values()) / 2
  assert {d for x in arrays.values() for d in x.devices()} == {jax.devices()[0]}


def test_warnings_are_python_warnings(tmp_path):
  group = groups.write(tmp_path, folders.tensors(), [folders.tensors()])
  with pytest.warns(UserWarning, match='is identical to the base'):
    resmerge_jax.load_merged(config_of(group, method=groups.MEAN))


def test_a_target_that_does_not_fit(group, mesh):
  base = groups.load(group.base)
  target = {name: PartitionSpec() for name in base}
  del target[NORM]
  target['model.extra'] = PartitionSpec()
  target[UP] = PartitionSpec(None, None, 'tp')
  target[EMBEDDING] = jax.ShapeDtypeStruct(
    (1056, 80), np.float32, sharding=NamedSharding(mesh, PartitionSpec())
  )
  target['model.layers.1.mlp.up_proj.weight'] = jax.ShapeDtypeStruct(
    (96, 80), np.float32, sharding=NamedSharding(mesh, PartitionSpec())
  )
  target['lm_head.weight'] = PartitionSpec('tp')
  target['model.layers.1.input_layernorm.weight'] = 'tp'
  with pytest.raises(InputError) as error:
    resmerge_jax.load_merged(config_of(group), mesh, target)
  assert error.value.what == 'load_merged: the target does not fit the merged model'
  problems = '\n'.join(error.value.problems)
  for text in (
    f'{NORM}: not in the target',
    'model.extra: the model has no such tensor',
    f'{EMBEDDING}: shape (1056, 80), the merge gives (1055, 80)',
    'layers.1.mlp.up_proj.weight: dtype float32, the merge gives bfloat16',
    "input_layernorm.weight: got 'tp', expected a sharding",
    f'{UP}: got ',
    ', the tensor has shape (96, 80)',
    'lm_head.weight: ',
  ):
    assert text in problems
  assert len(error.value.problems) == 7
  with pytest.raises(InputError, match='a PartitionSpec and a mesh'):
    resmerge_jax.load_merged(
      config_of(group), None, dict.fromkeys(base, PartitionSpec())
    )


def test_settings_of_a_folder_are_refused(group):
  with pytest.raises(InputError) as error:
    resmerge_jax.load_merged(config_of(group, resume=True, save_recipe=True))
  assert error.value.problems == ('resume', 'save_recipe')


def test_64_bits_are_not_halved(tmp_path):
  group = several.write_group(tmp_path)
  with pytest.raises(InputError) as error:
    resmerge_jax.load_merged(config_of(group))
  assert error.value.problems == ('model.position_ids: int64',)
  assert 'jax_enable_x64' in str(error.value)


def test_a_folder_needs_a_name(group):
  with pytest.raises(InputError, match='no output given'):
    resmerge_jax.merge(config_of(group))


def test_a_path_is_neither_a_merge_nor_a_recipe(folder):
  with pytest.raises(InputError, match=r'load_merged: got .*\n.*Recipe'):
    resmerge_jax.load_merged(str(folder))
