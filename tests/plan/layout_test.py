"""Output layout: file names, order, offsets and index."""

import dataclasses
import json

import numpy as np
import pytest

from resmerge_jax.checkpoint.format import read_header
from resmerge_jax.plan.layout import INDEX_NAME, lay_out
from resmerge_jax.types import TensorRef
from tests import layouts


def ref(name: str, n: int, file: str = 'model.safetensors') -> TensorRef:
  return TensorRef(name, 'F32', (n,), file)


def names(layout) -> dict[str, list[str]]:
  return {shard.name: [t.name for t in shard.tensors] for shard in layout.shards}


def test_one_file_keeps_the_given_order_and_needs_no_index():
  layout = layouts.layout()
  assert names(layout) == {'model.safetensors': ['b.weight', 'a.weight', 'norm']}
  assert layout.index is None
  header = len(layout.shards[0].header)
  assert header % 64 == 0
  starts = {name: place.start - header for name, place in layout.where.items()}
  assert starts == {'b.weight': 0, 'a.weight': 48, 'norm': 48 + 30}
  assert layout.shards[0].nbytes == layout.nbytes == header + 48 + 30 + 28


def test_default_keeps_the_files_of_the_base_and_the_order_in_each():
  tensors = [ref('z', 1, 'two'), ref('b', 2, 'one'), ref('a', 3, 'two')]
  layout = lay_out(tensors)
  assert names(layout) == {'two': ['z', 'a'], 'one': ['b']}
  assert {name: place.file for name, place in layout.where.items()} == {
    'z': 'two', 'a': 'two', 'b': 'one'
  }  # fmt: skip
  assert json.loads(layout.index) == {
    'metadata': {'total_parameters': 6, 'total_size': 24},
    'weight_map': {'a': 'two', 'b': 'one', 'z': 'two'},
  }
  assert layout.index.startswith(b'{\n  "metadata": {\n    "total_parameters": 6,')
  assert layout.index.endswith(b'}\n')
  assert layout.nbytes == sum(s.nbytes for s in layout.shards) + len(layout.index)


def test_a_single_file_of_another_name_is_found_through_an_index():
  layout = lay_out([ref('a', 1, 'model-00001-of-00001.safetensors')])
  assert json.loads(layout.index)['weight_map'] == {
    'a': 'model-00001-of-00001.safetensors'
  }


@pytest.mark.parametrize(
  ('limit', 'expected'),
  [
    (1, [['a'], ['b'], ['c'], ['d']]),
    (8, [['a'], ['b'], ['c', 'd']]),  # b is larger than the limit: its own file
    (11, [['a'], ['b'], ['c', 'd']]),
    (12, [['a'], ['b'], ['c', 'd']]),
    (16, [['a', 'b'], ['c', 'd']]),  # exactly full
    (19, [['a', 'b'], ['c', 'd']]),
    (20, [['a', 'b', 'c'], ['d']]),
  ],
)
def test_a_size_limit_fills_files_in_order_without_splitting(limit, expected):
  tensors = [ref('a', 1), ref('b', 3), ref('c', 1), ref('d', 1)]
  layout = lay_out(tensors, limit)
  n = len(expected)
  assert names(layout) == {
    f'model-{i:05}-of-{n:05}.safetensors': group for i, group in enumerate(expected, 1)
  }
  assert set(json.loads(layout.index)['weight_map']) == {'a', 'b', 'c', 'd'}


def test_a_limit_that_suffices_gives_one_file_whatever_the_base_had():
  layout = lay_out([ref('a', 1, 'x'), ref('b', 1, 'y')], 8)
  assert names(layout) == {'model.safetensors': ['a', 'b']}
  assert layout.index is None


def test_empty_tensors_and_scalars_have_a_place():
  tensors = [
    ref('none', 0),
    dataclasses.replace(ref('one', 0), shape=()),
    ref('two', 2),
  ]
  layout = lay_out(tensors)
  begin = layout.where['none'].start
  assert [layout.where[t.name].start - begin for t in tensors] == [0, 0, 4]


def test_headers_are_read_back_as_planned(tmp_path):
  layout = layouts.layout(60)
  assert [len(shard.tensors) for shard in layout.shards] == [1, 2]
  assert INDEX_NAME == 'model.safetensors.index.json'
  for shard in layout.shards:
    path = tmp_path / shard.name
    n_data = shard.nbytes - len(shard.header)
    path.write_bytes(shard.header + np.zeros(n_data, np.uint8).tobytes())
    header = read_header(path)
    assert header.metadata == {'format': 'pt'}
    assert list(header.tensors.values()) == list(shard.tensors)
