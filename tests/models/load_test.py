"""Loading: strict before a weight is read, and shard by shard."""

import collections

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.memory import MemoryReader, memory_checkpoint
from resmerge_jax.errors import InputError
from resmerge_jax.models.axes import AxisRules, shardings
from resmerge_jax.models.decoder import Decoder, parameters
from resmerge_jax.models.hf_config import config_to_hf
from resmerge_jax.models.load import load_decoder, read_box, read_decoder
from resmerge_jax.models.save import hf_tensors, save_decoder
from resmerge_jax.types import TensorRef
from tests import adapters, folders
from tests.models import tiny


class Recorder(MemoryReader):
  """Notes the size of each read, by tensor."""

  def __init__(self, tensors):
    super().__init__(tensors, 'm')
    self.reads = collections.defaultdict(list)

  def read_into(self, ref, row_start, row_stop, out):
    self.reads[ref.name].append(out.nbytes)
    super().read_into(ref, row_start, row_stop, out)


def weights(config=tiny.CONFIG, **options):
  return dict(hf_tensors(tiny.decoder(config, **options)))


def read(tensors, config=tiny.CONFIG, reader=None, **options):
  checkpoint = memory_checkpoint(tensors, 'm', config_to_hf(config, 'float32'))
  return read_decoder(checkpoint, reader or Recorder(tensors), **options)


def assert_equal(got: Decoder, want: Decoder) -> None:
  got_params, want_params = parameters(got), parameters(want)
  assert got_params.keys() == want_params.keys()
  for path, param in want_params.items():
    np.testing.assert_array_equal(got_params[path][...], param[...], str(path))


@pytest.mark.parametrize('config', [tiny.FULL, tiny.QWEN3])
@pytest.mark.parametrize('shape', [(2, 2), (4, 2), (8, 1), (1, 2)])
def test_every_device_reads_its_bytes_and_no_others(config, shape):
  mesh, want = tiny.mesh(*shape), tiny.decoder(config)
  tensors = dict(hf_tensors(want))
  reader = Recorder(tensors)
  model = read(tensors, config, reader, mesh=mesh)
  assert_equal(model, want)
  specs = shardings(parameters(model), mesh)
  for path, param in parameters(model).items():
    assert param[...].sharding == specs[path]
  # Each byte once, also where several devices hold it.
  for name, value in tensors.items():
    assert sum(reader.reads[name]) == value.nbytes, name
  split = 'model.layers.0.mlp.up_proj.weight'
  parts = shape[0] * shape[1]
  assert max(reader.reads[split]) <= tensors[split].nbytes // parts


def test_without_a_mesh_on_the_default_device():
  model = read(weights())
  assert_equal(model, tiny.decoder())
  assert model.embed.embedding[...].devices() == {jax.devices()[0]}


def test_any_mesh_by_the_callers_rules():
  auto = (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((2, 2, 2), ('data', 'x', 'y'), axis_types=auto)
  rules = AxisRules(
    vocab=('x', 'y'), embed=None, mlp=('x', 'y'), heads='x', kv_heads='x',
    head_dim='y', batch='data',
  )  # fmt: skip
  want = tiny.decoder(tiny.FULL)
  tensors = dict(hf_tensors(want))
  model = read(tensors, tiny.FULL, mesh=mesh, rules=rules)
  assert_equal(model, want)
  query = model.layers[0].attn.q.kernel[...]
  assert query.sharding.shard_shape(query.shape) == (16, 2, 2)
  with jax.set_mesh(mesh):
    got = tiny.forward(model, tiny.TOKENS)
  want_logits = tiny.forward(want, tiny.TOKENS)
  # float32 sums in another order.
  scale = abs(want_logits).max()
  np.testing.assert_allclose(got, want_logits, rtol=0, atol=1e-5 * scale)


def test_a_mesh_without_the_axes_of_the_default_rules():
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('fsdp',), axis_types=auto)
  model = read(weights(), mesh=mesh)
  assert model.layers[0].mlp.up.kernel[...].sharding.spec == jax.P('fsdp', None)


@pytest.mark.parametrize(
  ('shape', 'rules', 'text'),
  [
    ((2, 4), None, '2 is not divided by the 4 devices of'),
    (
      (2, 2),
      AxisRules(mlp='model'),
      "layers.*.mlp.up.kernel [16, 24]: no mesh axis 'mod",
    ),
    ((2, 2), AxisRules(mlp='fsdp'), "mesh axis 'fsdp' splits two of its dimensions"),
  ],
)
def test_rules_that_do_not_fit_the_mesh(shape, rules, text):
  tensors = weights()
  reader = Recorder(tensors)
  with pytest.raises(InputError) as caught:
    read(tensors, reader=reader, mesh=tiny.mesh(*shape), rules=rules)
  assert text in str(caught.value)
  assert 'What to do: give rules (AxisRules) that leave' in str(caught.value)
  assert len(set(caught.value.problems)) == len(caught.value.problems) < 8
  assert not reader.reads


def test_a_mesh_of_explicit_axes():
  mesh = jax.make_mesh((2, 2), ('fsdp', 'tp'), devices=jax.devices()[:4])
  with pytest.raises(InputError, match='its axes are not all of type Auto'):
    read(weights(), mesh=mesh)


def test_all_tensors_that_do_not_fit_come_at_once():
  tensors = weights()
  del tensors['model.norm.weight']
  tensors['model.layers.0.mlp.up_proj.weight'] = np.zeros((23, 16), np.float32)
  tensors['model.layers.1.mlp.up_proj.weight'] = np.zeros((24, 16), np.int32)
  tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((24, 16), np.float32)
  reader = Recorder(tensors)
  with pytest.raises(InputError) as caught:
    read(tensors, reader=reader)
  assert caught.value.what == "model 'm': its tensors are not those of its config.json"
  assert caught.value.problems == (
    'model.layers.0.mlp.up_proj.weight: [23, 16], [24, 16] by config.json',
    'model.layers.1.mlp.up_proj.weight: I32 instead of floating-point numbers',
    'model.norm.weight: missing, [16] by config.json',
    'model.layers.2.mlp.up_proj.weight: extra, [24, 16]',
  )
  assert not reader.reads


def test_a_stored_head_that_the_config_ties():
  tensors = weights(tiny.QWEN3)
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  with pytest.raises(InputError) as caught:
    read(tensors, tiny.QWEN3)
  assert caught.value.problems == ('lm_head.weight: extra, [40, 16]',)
  assert 'tie_word_embeddings false in config.json makes' in str(caught.value)


def test_buffers_of_old_llama_folders_are_known():
  tensors = weights(tiny.FULL)
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(2, np.float32)
  assert_equal(read(tensors, tiny.FULL), tiny.decoder(tiny.FULL))


def test_dtypes():
  tensors = weights(param_dtype=jnp.bfloat16)
  norm = tensors['model.norm.weight'].astype(np.float64)
  tensors['model.norm.weight'] = norm
  stored = read(tensors)
  assert stored.layers[0].attn.q.kernel.dtype == jnp.bfloat16
  assert stored.final_norm.scale.dtype == jnp.float32
  assert stored.embed.dtype == jnp.bfloat16
  wide = read(tensors, param_dtype='float32')
  assert {param.dtype for param in parameters(wide).values()} == {np.dtype('float32')}
  assert wide.embed.dtype == jnp.float32
  np.testing.assert_array_equal(
    wide.embed.embedding[...], np.asarray(stored.embed.embedding[...], np.float32)
  )
  both = read(tensors, dtype='float32')
  assert both.embed.dtype == jnp.float32
  assert both.embed.embedding.dtype == jnp.bfloat16
  narrow = read(weights(), param_dtype=jnp.bfloat16)
  assert narrow.final_norm.scale.dtype == jnp.bfloat16


def test_folders_with_several_files(tmp_path):
  tensors = weights()
  config = config_to_hf(tiny.CONFIG, 'float32')
  folder = folders.write_folder(tmp_path / 'm', tensors, config=config, n_shards=3)
  assert_equal(load_decoder(folder), tiny.decoder())
  assert_equal(load_decoder(folder, tiny.mesh(2, 2)), tiny.decoder())


def test_errors_name_the_folder(tmp_path):
  folder = folders.write_folder(tmp_path / 'm')
  with pytest.raises(InputError, match=r"^model 'm', config.json: not a model that"):
    load_decoder(folder)
  with pytest.raises(InputError, match=r'^model .*nowhere: no such folder'):
    load_decoder(tmp_path / 'nowhere')
  factors = adapters.factors(folders.tensors(), 'model.layers.0.mlp.up_proj')
  adapter = adapters.write(tmp_path / 'a', factors)
  with pytest.raises(InputError, match=r"^model 'a': a LoRA adapter, not a model"):
    load_decoder(adapter)


@pytest.mark.parametrize(
  ('box', 'n_reads'),
  [
    (((0, 4), (0, 3), (0, 5)), 1),
    (((1, 3), (0, 3), (0, 5)), 1),
    (((1, 3), (1, 3), (0, 5)), 2),
    (((0, 4), (0, 3), (2, 4)), 12),
    (((2, 3), (1, 2), (3, 5)), 1),
  ],
)
def test_runs_of_a_box(box, n_reads):
  values = np.arange(60).astype(ml_dtypes.bfloat16).reshape(4, 15)
  reader = Recorder({'x': values})
  got = read_box(reader, TensorRef('x', 'BF16', (4, 15)), (4, 3, 5), box)
  want = values.reshape(4, 3, 5)[tuple(slice(*span) for span in box)]
  assert (got == want).all()
  assert len(reader.reads['x']) == n_reads


def test_saving_refuses_what_is_in_the_way(tmp_path):
  model = tiny.decoder(param_dtype=jnp.bfloat16)
  save_decoder(model, tmp_path / 'm')
  assert {ref.dtype for ref in open_checkpoint(tmp_path / 'm').tensors.values()} == {
    'BF16'
  }
  with pytest.raises(InputError, match='overwrite'):
    save_decoder(model, tmp_path / 'm')
  save_decoder(model, tmp_path / 'm', overwrite=True)
  assert_equal(load_decoder(tmp_path / 'm'), model)


def test_flax_finds_the_shardings_too():
  model = Decoder(tiny.CONFIG, None)
  mesh = tiny.mesh(2, 2)
  by_flax = nnx.to_flat_state(nnx.get_named_sharding(nnx.state(model), mesh))
  ours = shardings(parameters(model), mesh)
  assert {path: param.get_value() for path, param in by_flax} == ours
