"""The tables of other stacks: every tensor has one place, and comes back from it."""

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.trees.places import leaves_of, named, places
from resmerge_jax.trees.table import LAYOUTS
from resmerge_jax.types import CODES, TensorRef
from tests.trees import models
from tests.trees.models import D, E, F, H, K, L, N, V

CASES = [
  (layout.name, kind)
  for layout in LAYOUTS.values()
  for kind in models.KINDS
  if layout.model_types is None or kind in layout.model_types
]


def refs(tensors):
  return {n: TensorRef(n, CODES[a.dtype], a.shape) for n, a in tensors.items()}


def placed(layout, kind, tensors):
  return places(LAYOUTS[layout], refs(tensors), models.config(kind))


def tree_of(found, tensors):
  """Leaves by path, from the tensors."""
  leaves = {}
  for place, names in leaves_of(found):
    leaf = np.zeros(place.leaf_shape, tensors[names[0]].dtype)
    for name in names:
      leaf[found[name].part] = found[name].to_leaf(tensors[name])
    leaves[place.path] = leaf
  return leaves


@pytest.mark.parametrize(('layout', 'kind'), CASES)
def test_there_and_back(layout, kind):
  tensors = models.tensors(kind, np.float32)
  found = placed(layout, kind, tensors)
  assert list(found) == list(tensors)
  leaves = tree_of(found, tensors)
  assert sum(leaf.size for leaf in leaves.values()) == sum(
    a.size for a in tensors.values()
  )
  back, unknown = named(LAYOUTS[layout], {k: leaf.shape for k, leaf in leaves.items()})
  assert not unknown
  assert back == found
  for name, place in back.items():
    assert place.hf_shape == tensors[name].shape
    got = place.from_leaf(leaves[place.path][place.part])
    np.testing.assert_array_equal(got, tensors[name])


def test_names_and_shapes_of_our_own_tree():
  tensors = models.tensors('qwen2', np.float32)
  leaves = tree_of(placed('nnx', 'qwen2', tensors), tensors)
  q = models.layer(tensors, 1, 'self_attn.q_proj')
  o = models.layer(tensors, 1, 'self_attn.o_proj')
  np.testing.assert_array_equal(
    leaves['layers', '1', 'attn', 'q', 'kernel'], q.T.reshape(D, N, H)
  )
  np.testing.assert_array_equal(
    leaves['layers', '1', 'attn', 'o', 'kernel'], o.T.reshape(N, H, D)
  )
  assert leaves['layers', '2', 'attn', 'k', 'bias'].shape == (K, H)
  assert leaves['layers', '0', 'mlp', 'down', 'kernel'].shape == (F, D)
  assert leaves['embed', 'embedding'].shape == (V, D)
  assert leaves['lm_head', 'kernel'].shape == (D, V)


def test_scanned_layers_are_axis_one():
  tensors = models.tensors('qwen3_moe', np.float32)
  leaves = tree_of(placed('maxtext_scanned', 'qwen3_moe', tensors), tensors)
  layers = {path[4:]: a for path, a in leaves.items() if path[3:4] == ('layers',)}
  assert {'/'.join(path): a.shape for path, a in layers.items()} == {
    'pre_self_attention_layer_norm/scale': (D, L),
    'self_attention/query/kernel': (D, L, N, H),
    'self_attention/key/kernel': (D, L, K, H),
    'self_attention/value/kernel': (D, L, K, H),
    'self_attention/out/kernel': (N, L, H, D),
    'self_attention/query_norm/scale': (H, L),
    'self_attention/key_norm/scale': (H, L),
    'post_self_attention_layer_norm/scale': (D, L),
    'moe_block/gate/kernel': (D, L, E),
    'moe_block/wi_0': (E, L, D, F),
    'moe_block/wi_1': (E, L, D, F),
    'moe_block/wo': (E, L, F, D),
  }
  for i in range(L):
    q = models.layer(tensors, i, 'self_attn.q_proj')
    np.testing.assert_array_equal(
      layers['self_attention', 'query', 'kernel'][:, i], q.T.reshape(D, N, H)
    )
    up = models.layer(tensors, i, 'mlp.experts.1.up_proj')
    np.testing.assert_array_equal(layers['moe_block', 'wi_1'][1, i], up.T)


def test_a_saved_tree_may_lack_the_last_key():
  tensors = models.tensors('qwen3')
  found = placed('tunix', 'qwen3', tensors)
  place = found['model.layers.0.mlp.up_proj.weight']
  assert place.path == ('layers', '0', 'mlp', 'up_proj', 'kernel', 'value')
  leaves = {p.path[:-1]: p.leaf_shape for p in found.values()}
  assert named(LAYOUTS['tunix'], leaves)[0].keys() == tensors.keys()


def refused(layout, kind, tensors, **fields) -> str:
  config = {**models.config(kind), **fields}
  with pytest.raises(InputError) as caught:
    places(LAYOUTS[layout], refs(tensors), {k: v for k, v in config.items() if v})
  assert 'choose --orbax_layout=hf' in str(caught.value)
  return str(caught.value)


def test_what_has_no_place_is_named():
  tensors = models.tensors('qwen2') | {'model.vision.weight': np.zeros(3, np.float32)}
  assert refused('nnx', 'qwen2', tensors).startswith(
    'orbax_layout nnx: 1 tensors have no place in its table\n  - model.vision.weight\n'
  )


def test_a_model_without_a_table():
  text = refused('tunix', 'gemma2', models.tensors('llama'))
  assert text.startswith(
    "orbax_layout tunix: no table for model_type 'gemma2', only for llama, qwen2, qwen3, "
    'qwen3_moe\n'
  )
  text = refused('maxtext', 'llama', models.tensors('llama'))
  assert 'MaxText divides the queries of Llama by the square root of head_dim' in text


def test_a_config_without_heads():
  tensors = models.tensors('qwen3')
  text = refused('nnx', 'qwen3', tensors, num_attention_heads=None)
  assert text.startswith(
    'orbax_layout nnx: config.json of the base has no num_attention_heads\n'
  )
  text = refused('nnx', 'qwen3', tensors, num_attention_heads=5, head_dim=None)
  assert '1 x' not in text
  assert 'model.layers.0.self_attn.q_proj.weight: [24, 12] is not NH x D' in text


def test_a_stack_with_a_hole_or_of_two_kinds():
  tensors = models.tensors('qwen2')
  del tensors['model.layers.1.mlp.up_proj.weight']
  text = refused('maxtext_scanned', 'qwen2', tensors)
  assert 'decoder/layers/mlp/wi_1/kernel: 2 of 3 tensors' in text
  tensors = models.tensors('qwen2')
  name = 'model.layers.1.mlp.up_proj.weight'
  tensors[name] = tensors[name].astype(np.float32)
  text = refused('maxtext_scanned', 'qwen2', tensors)
  assert 'wi_1/kernel: 2 of BF16 [10, 12], 1 of F32 [10, 12]' in text
