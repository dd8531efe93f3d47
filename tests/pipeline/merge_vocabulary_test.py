"""Whole merges of folders whose vocabularies have different sizes."""

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from tests import folders, groups
from tests.groups import MEAN

NAME = 'model.embed_tokens.weight'


def make_group(tmp_path, rows=(6, 8, 5)):
  weights = [folders.tensors(i, vocab=n) for i, n in enumerate(rows)]
  paths = [
    folders.write_folder(tmp_path / name, weight, vocab_size=n)
    for name, weight, n in zip(('base', 'e0', 'e1'), weights, rows, strict=True)
  ]
  arrays = [weight[NAME].astype(np.float64) for weight in weights]
  return groups.Group(paths[0], tuple(paths[1:])), arrays


def test_error(tmp_path):
  group, _ = make_group(tmp_path)
  with pytest.raises(InputError) as caught:
    groups.merge(group, tmp_path / 'out', method=MEAN)
  text = str(caught.value)
  assert f"expert 'e0': {NAME} in model.safetensors is BF16 [8, 4]" in text
  assert f"expert 'e1': {NAME} in model.safetensors is BF16 [5, 4]" in text
  assert 'choose --vocab=base_rows' in text
  assert not (tmp_path / 'out').exists()


def test_base_rows(tmp_path):
  group, (base, first, second) = make_group(tmp_path)
  merged = groups.merge(
    group, tmp_path / 'out', method=MEAN, vocab='base_rows', output_dtype='float32'
  )
  want = base + (first[:6] - base) / 2
  want[:5] += (second - base[:5]) / 2
  got = groups.load(merged.output)[NAME]
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
  assert groups.config(merged.output)['vocab_size'] == 6
  sizes = 'rows differ (base 6, e0 8, e1 5); --vocab=base_rows gives 6 rows'
  assert f'{NAME}: {sizes}' in merged.warnings


def test_pad(tmp_path):
  group, (_base, first, second) = make_group(tmp_path)
  merged = groups.merge(
    group, tmp_path / 'out', method=MEAN, vocab='pad', output_dtype='float32'
  )
  want = np.concatenate([(first[:5] + second) / 2, first[5:]])
  got = groups.load(merged.output)[NAME]
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
  assert got.shape == (8, 4)
  assert groups.config(merged.output)['vocab_size'] == 8
  assert 'config.json: vocab_size 6 -> 8' in merged.warnings
  (record,) = (r for r in groups.records(merged.output) if r['name'] == NAME)
  assert record['shape'] == [8, 4]


def test_pad_keeps_rows_that_only_the_base_has(tmp_path):
  group, (base, first, second) = make_group(tmp_path, rows=(7, 5, 6))
  merged = groups.merge(
    group, tmp_path / 'out', method=MEAN, vocab='pad', output_dtype='float32'
  )
  want = np.concatenate([(first + second[:5]) / 2, second[5:], base[6:]])
  got = groups.load(merged.output)[NAME]
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
