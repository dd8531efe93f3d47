"""Tensors put into the array of their stack, as they come."""

import jax
import pytest
from flax import traverse_util

from resmerge_jax.pipeline.array_sink import ArraySink, Leaf
from resmerge_jax.trees.places import places
from resmerge_jax.trees.table import LAYOUTS
from resmerge_jax.types import CODES, DTYPES, TensorRef
from tests import groups, orbax_folders
from tests.models import tiny
from tests.trees import models


@pytest.mark.parametrize('split', [(), (None, 'fsdp'), ('tp', 'fsdp'), ('tp',)])
def test_layers_and_experts_of_a_stack(split):
  """MaxText: [E, L, ...], so experts, layers or both lie on different devices."""
  tensors, config = models.tensors('qwen3_moe'), models.config('qwen3_moe')
  mesh, layout = tiny.mesh(3, 2), 'maxtext_scanned'
  where = {n: TensorRef(n, CODES[a.dtype], a.shape) for n, a in tensors.items()}
  leaves = {}
  for name, place in places(LAYOUTS[layout], where, config).items():
    cut = split if len(place.index) == 2 else ()
    sharding = jax.NamedSharding(mesh, jax.P(*cut))
    dtype = DTYPES[where[name].dtype]
    leaves[name] = Leaf(place.leaf_shape, dtype, sharding, place)
  assert sum(len(leaf.place.index) == 2 for leaf in leaves.values()) > 8
  sink = ArraySink(where, leaves)
  for name in sorted(tensors, reverse=True):
    half = tensors[name].nbytes // 2
    raw = tensors[name].reshape(-1).view('u1')
    sink.write(name, half, raw[half:])
    sink.write(name, 0, raw[:half])
  got = {}
  for name, array in sink.arrays().items():
    assert array.sharding == leaves[name].sharding
    got['/'.join(leaves[name].place.path)] = jax.device_get(array)
  tree = orbax_folders.tree(layout, tensors, config)
  want = traverse_util.flatten_dict(tree, sep='/')
  groups.assert_same_bits(got, want)
