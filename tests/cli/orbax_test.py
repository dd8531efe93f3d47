"""to_orbax and from_orbax, and what the other commands say of Orbax checkpoints."""

import jax
import numpy as np
import orbax.checkpoint as classic
import pytest
from orbax.checkpoint import v1 as checkpoint

from resmerge_jax.cli import compare, from_orbax, merge, plan, show, to_orbax, verify
from tests import commands, folders, groups, orbax_folders
from tests.cli.merge_test import assert_refused
from tests.trees import models


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return folders.write_folder(
    tmp_path_factory.mktemp('source') / 'hf',
    models.tensors('qwen2'),
    config=models.config('qwen2'),
  )


@pytest.fixture(scope='module')
def scanned(source):
  output = source.with_name('scanned')
  done = commands.run(to_orbax, source, output, '--orbax_layout=maxtext_scanned')
  assert (done.status, done.err) == (0, ''), done
  assert done.out.startswith(f'{output}: 39 tensors, ')
  assert done.out.endswith(' written as orbax (layout maxtext_scanned), dtype base\n')
  return output


def test_there_and_back(source, scanned, tmp_path):
  back = tmp_path / 'back'
  done = commands.run(from_orbax, scanned, back, '--max_shard_size=2kB')
  assert (done.status, done.err) == (0, ''), done
  assert ' written as safetensors, dtype base\n' in done.out
  assert len(list(back.glob('*.safetensors'))) > 1
  groups.assert_same_bits(groups.load(back), models.tensors('qwen2'))
  for folder in (scanned, back):
    assert commands.run(verify, folder).status == 0
  done = commands.run(compare, source, scanned)
  assert done.status == 0, done
  done = commands.run(from_orbax, scanned, back)
  assert_refused(done, f'output {back} is not empty')
  done = commands.run(
    from_orbax, scanned, back, '--overwrite', '--output_dtype=float32'
  )
  assert done.status == 0
  assert {a.dtype for a in groups.load(back).values()} == {np.dtype(np.float32)}


def test_maxtext_restores_it_in_its_own_way(scanned):
  """The calls of MaxText's load_params_from_path, onto another mesh."""
  mesh = jax.make_mesh((2, 3), ('fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:6])  # fmt: skip
  tree = orbax_folders.tree(
    'maxtext_scanned', models.tensors('qwen2'), models.config('qwen2')
  )
  abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(
      a.shape, np.float32, sharding=jax.NamedSharding(mesh, jax.P(None, 'tensor') if a.ndim > 2 else jax.P())
    ),
    tree['params'],
  )  # fmt: skip
  handler = classic.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
  restored = classic.Checkpointer(handler).restore(
    scanned / 'state',
    item={'params': abstract},
    transforms={},
    restore_args={'params': classic.checkpoint_utils.construct_restore_args(abstract)},
  )
  jax.tree.map(
    lambda got, want: np.testing.assert_array_equal(got, want.astype(np.float32)),
    restored['params'],
    tree['params'],
  )
  query = restored['params']['params']['decoder']['layers']['self_attention']['query']
  assert query['kernel'].sharding.spec == jax.P(None, 'tensor')


def test_what_is_shown(source, scanned):
  done = commands.run(show, scanned, source)
  assert (done.status, done.err) == (0, '')
  assert '  orbax       layout maxtext_scanned, 15 leaves in 58 files of ' in done.out
  assert '1 x [14, 12] BF16' in done.out
  assert 'nothing: equal names, shapes, dtypes, tokenizer and model config' in done.out
  assert 'sub-folders' not in done.out


def test_the_plan_prints_format_and_layout(source, scanned, tmp_path):
  flags = [
    f'--base={source}',
    f'--experts={scanned}',
    f'--output={tmp_path / "out"}',
    '--output_format=both',
    '--orbax_layout=nnx',
  ]
  done = commands.run(plan, *flags)
  assert (done.status, done.err) == (0, ''), done
  assert ' safetensors and orbax (layout nnx), floating tensors as bfloat16' in done.out
  done = commands.run(merge, *flags, '--method=task_arithmetic')
  assert (done.status, done.err) == (0, ''), done
  assert ' written as safetensors and orbax (layout nnx), bfloat16, ' in done.out
  loaded = checkpoint.load(tmp_path / 'out' / 'orbax')
  assert loaded['layers']['0']['attn']['q']['kernel'].shape == (12, 4, 6)


def test_wrong_arguments(source, tmp_path):
  done = commands.run(to_orbax, source)
  assert_refused(done, '1 folders given, two are wanted')
  done = commands.run(from_orbax, source, tmp_path / 'out')
  assert_refused(
    done, f'source {source}: a Hugging Face folder, not an Orbax checkpoint'
  )
  done = commands.run(to_orbax, source, tmp_path / 'out', '--orbax_layout=levanter')
  assert done.status == 1
  assert 'hf|nnx|maxtext|maxtext_scanned|tunix' in done.err
  assert not any(tmp_path.iterdir())
