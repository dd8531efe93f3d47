"""Files of an Orbax checkpoint: their sizes are known from the headers."""

import itertools
import json
import struct

import pytest

from resmerge_jax.plan.layout import lay_out
from resmerge_jax.plan.orbax_files import CHUNK_BYTES, joined, lay_out_orbax
from resmerge_jax.types import TensorRef


def laid_out(shape, dtype='BF16'):
  ref = TensorRef('w', dtype, shape, 'model.safetensors')
  return lay_out_orbax([ref], 'hf', {}, {'w': 'model.safetensors'})


@pytest.mark.parametrize(
  ('shape', 'parts'),
  [
    ((), 1),
    ((0, 8), 1),
    ((8,), 1),
    ((1024, 1024), 1),
    ((8192, 8192), 8),
    ((152064, 3584), 66),  # Qwen2.5 7B: the least divisor above 64.97
    ((151665, 3584), 15),  # 3 x 5 x 10111: parts of 72 MB rather than of 0.1
    ((151667, 3584), 1),  # a prime number
  ],
)
def test_large_tensors_have_parts_that_can_be_read_alone(shape, parts):
  layout = laid_out(shape)
  (shard,) = layout.shards
  assert len(shard.header) == 16 * parts
  (ref,) = shard.tensors
  assert (ref.start, shard.nbytes) == (16 * parts, 16 * parts + ref.nbytes)
  index = list(struct.iter_unpack('<QQ', shard.header))
  assert index[0][0] == ref.start
  assert sum(n for _, n in index) == ref.nbytes
  assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(index))
  if parts > 15:
    assert index[0][1] <= CHUNK_BYTES


def test_the_files_of_both_formats():
  refs = [TensorRef('a', 'F32', (2, 3), 'x'), TensorRef('b', 'I64', (2,), 'x')]
  plain = lay_out(refs, 8)
  both = joined(plain, lay_out_orbax(refs, 'hf', {}, plain.group_of, 'orbax'))
  assert [ref.file for ref in both.places['a']] == [
    'model-00001-of-00002.safetensors',
    'orbax/state/a/c/0/0',
  ]
  assert both.where == plain.where
  assert both.group_of == plain.group_of
  assert set(both.groups) == {shard.name for shard in plain.shards}
  assert both.nbytes == sum(s.nbytes for s in both.shards) + sum(
    len(text) for text in both.written_texts.values()
  )
  tree = json.loads(both.texts['orbax/state/_METADATA'])
  assert list(tree['tree_metadata']) == ["('a',)", "('b',)"]
  assert json.loads(both.texts['orbax/state/b/zarr.json'])['data_type'] == 'int64'
