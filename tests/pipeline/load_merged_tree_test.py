"""Merged parameters straight into the tree of a training stack, an NNX decoder's too."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

import resmerge_jax
from resmerge_jax.errors import InputError
from resmerge_jax.models.axes import AxisRules
from resmerge_jax.models.decoder import Decoder, parameters, with_arrays
from resmerge_jax.models.load import load_decoder
from resmerge_jax.models.save import save_decoder
from tests import groups, orbax_folders
from tests.models import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, num_key_value_heads=4)


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> resmerge_jax.MergeConfig:
  path = tmp_path_factory.mktemp('group')
  for i, name in enumerate(('base', 'math', 'code')):
    model = tiny.decoder(CONFIG)
    noise = np.random.default_rng(i)
    moved = {
      at: p[...] + (i > 0) * 0.01 * noise.standard_normal(p.shape, np.float32)
      for at, p in parameters(model).items()
    }
    save_decoder(with_arrays(model, moved), path / name)
    (path / name / 'tokenizer.json').write_text('{}')
  return resmerge_jax.MergeConfig(
    path / 'base', (path / 'math', path / 'code'), output_dtype='float32'
  )


@pytest.fixture(scope='module')
def merged(config, tmp_path_factory):
  """The folder that a merge writes."""
  output = tmp_path_factory.mktemp('merged') / 'out'
  return resmerge_jax.merge(dataclasses.replace(config, output=output)).output


def logits(model: Decoder) -> np.ndarray:
  return np.asarray(tiny.forward(model, tiny.TOKENS))


def test_into_a_decoder_of_shapes(config, merged):
  mesh = tiny.mesh(2, 4)
  rules = AxisRules().on(mesh)
  model = Decoder(CONFIG, None, rules=rules)
  state = resmerge_jax.load_merged(config, mesh, target=model)
  loaded = nnx.merge(nnx.graphdef(model), state)
  wanted = load_decoder(merged, mesh, rules=rules)
  for path, param in parameters(wanted).items():
    got = parameters(loaded)[path][...]
    np.testing.assert_array_equal(got, param[...])
    assert got.sharding == param[...].sharding
  with jax.set_mesh(mesh):
    np.testing.assert_array_equal(logits(loaded), logits(wanted))


def test_into_a_living_model(config, merged):
  """It lies where the model's arrays lie; a state of it does as well."""
  model = tiny.decoder(CONFIG)
  for target in (model, nnx.state(model)):
    nnx.update(model, resmerge_jax.load_merged(config, target=target))
    np.testing.assert_array_equal(logits(model), logits(load_decoder(merged)))


def test_a_tree_without_a_model(config, merged):
  tensors = groups.load(merged)
  tree = resmerge_jax.load_merged(config, layout='tunix')
  name = 'model.layers.1.self_attn.q_proj.weight'
  heads, size = CONFIG.num_attention_heads, CONFIG.head_dim
  np.testing.assert_array_equal(
    tree['layers'][1]['attn']['q_proj']['w'],
    tensors[name].T.reshape(CONFIG.hidden_size, heads, size),
  )
  count = sum(x.size for x in traverse_util.flatten_dict(tree).values())
  assert count == sum(x.size for x in tensors.values())
  target = jax.tree.map(lambda x: x.sharding, tree)
  again = resmerge_jax.load_merged(config, target=target, layout='tunix')
  jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_stacked_layers(config, merged):
  mesh, layout = tiny.mesh(2, 4), 'maxtext_scanned'
  hf = json.loads((merged / 'config.json').read_text())
  want = orbax_folders.tree(layout, groups.load(merged), hf)
  tree = resmerge_jax.load_merged(config, mesh, layout=layout)
  jax.tree.map(np.testing.assert_array_equal, tree, want)
  target = jax.tree.map(lambda x: x.sharding, tree)
  again = resmerge_jax.load_merged(config, target=target, layout=layout)
  jax.tree.map(np.testing.assert_array_equal, again, want)


@pytest.mark.parametrize(
  ('kwargs', 'texts'),
  [
    (
      {'target': Decoder(CONFIG, None, param_dtype=jnp.bfloat16)},
      ['does not fit', 'lm_head.weight: dtype bfloat16, the merge gives float32'],
    ),
    (
      {'target': Decoder(dataclasses.replace(CONFIG, vocab_size=41), None)},
      ['model.embed_tokens.weight: shape (41, 16), the merge gives (40, 16)'],
    ),
    (
      {'target': Decoder(tiny.QWEN3, None)},
      ['layers/0/attn/q_norm/scale: the model has no such tensor',
       'lm_head.weight: not in the target'],
    ),
    ({'layout': 'other'}, ["layout: got 'other', expected hf | nnx | "]),
  ],
)  # fmt: skip
def test_refused(config, kwargs, texts):
  with pytest.raises(InputError) as error:
    resmerge_jax.load_merged(config, tiny.mesh(2, 4), **kwargs)
  for text in texts:
    assert text in str(error.value)
