"""Merges with masks and coefficients from a file: what comes out, what is refused."""

import functools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import resmerge_jax
from resmerge_jax.config import MergeConfig
from resmerge_jax.errors import InputError
from resmerge_jax.methods.rank_mask import RankMask
from resmerge_jax.pipeline.prepare import prepare
from tests.folders import tensors, write_folder
from tests.oracles.spectral import thin_svd

N = 2
IDS = ['expert_0', 'expert_1']
BASE = {name: w.astype(np.float32) for name, w in tensors().items()}
MATRICES = [name for name in BASE if 'proj' in name]
Arrays = dict[str, np.ndarray]


def changed(seed: int) -> Arrays:
  rng = np.random.default_rng(seed)
  return {
    n: w + rng.normal(0, 0.1, w.shape).astype(np.float32) for n, w in BASE.items()
  }


EXPERTS = [changed(seed) for seed in range(1, 1 + N)]


def some_masks(dtype: Any = np.uint8) -> Arrays:
  rng = np.random.default_rng(9)
  return {f'{n}:mask_NxS': rng.integers(0, 2, (N, 4)).astype(dtype) for n in MATRICES}


def some_lambdas() -> Arrays:
  rng = np.random.default_rng(10)
  return {f'{n}:lambda_N': rng.normal(size=N).astype(np.float32) for n in BASE}


def write(path: pathlib.Path, arrays: Arrays, ids: Any = IDS) -> str:
  metadata = None if ids is None else {'experts': json.dumps(ids)}
  save_file(arrays, path / 'masks.safetensors', metadata)
  return str(path / 'masks.safetensors')


merged = functools.partial(
  resmerge_jax.merge_state_dicts, BASE, EXPERTS, 'rank_mask', output_dtype='float32'
)


def assert_same(got: Arrays, want: Arrays) -> None:
  for name, array in want.items():
    # float32 products of numbers of about 1
    np.testing.assert_allclose(got[name], array, atol=2e-6, err_msg=name)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_masks_and_coefficients_choose_components(tmp_path, dtype):
  masks, lambdas = some_masks(dtype), some_lambdas()
  result = merged({'masks': write(tmp_path, {**masks, **lambdas})})
  want = {}
  for name, base in BASE.items():
    update = np.zeros(base.shape)
    for i, expert in enumerate(EXPERTS):
      delta = np.float64(expert[name]) - np.float64(base)
      if name in MATRICES:
        u, sigma, v = thin_svd(delta)
        delta = (u * (sigma * masks[f'{name}:mask_NxS'][i])) @ v.T
      update += lambdas[f'{name}:lambda_N'][i] * delta
    want[name] = base + update
  assert_same(result.tensors, want)
  records = {record['name']: record for record in result.records}
  record = records[MATRICES[0]]
  assert record['rank'] == masks[f'{MATRICES[0]}:mask_NxS'].sum(1).tolist()
  assert record['branch'] == 'ok'
  assert record['error'] < 1e-9


def test_all_components_are_task_arithmetic(tmp_path):
  arrays = {name: np.ones_like(mask) for name, mask in some_masks().items()}
  arrays |= {name: np.ones(N, np.float32) for name in some_lambdas()}
  sums = resmerge_jax.merge_state_dicts(
    BASE,
    EXPERTS,
    'task_arithmetic',
    {'reduce': 'sum'},
    output_dtype='float32',
  )
  assert_same(merged({'masks': write(tmp_path, arrays)}).tensors, sums.tensors)


def test_masks_of_leading_components_are_a_rank_ratio(tmp_path):
  leading = np.tile(np.uint8([1, 1, 0, 0]), (N, 1))
  path = write(tmp_path, dict.fromkeys(some_masks(), leading))
  without_coefficients = merged({'masks': path, 'scale': 0.7})
  by_ratio = merged({'rank_ratio': 0.5, 'scale': 0.7})
  assert_same(without_coefficients.tensors, by_ratio.tensors)


def test_components_that_rounding_decides_are_said(tmp_path):
  name = MATRICES[0]
  # Two equal singular values of which one stays.
  experts = [{**BASE, name: BASE[name] + np.float32(sign)} for sign in (1, -1)]
  experts[0][name] = BASE[name] + np.eye(*BASE[name].shape, dtype=np.float32)
  masks = dict.fromkeys(some_masks(), np.tile(np.uint8([1, 0, 1, 1]), (N, 1)))
  result = resmerge_jax.merge_state_dicts(
    {**BASE, name: 0 * BASE[name]},
    [{**e, name: e[name] - BASE[name]} for e in experts],
    'rank_mask',
    {'masks': write(tmp_path, masks)},
  )
  record = next(r for r in result.records if r['name'] == name)
  assert record['branch'] == 'ill_posed'
  assert record['error'] > 0.1


def test_a_file_that_does_not_fit(tmp_path):
  masks, lambdas = some_masks(), some_lambdas()
  lost, short, *_ = masks
  del masks[lost]
  masks[short] = masks[short][:, :3]
  lambdas['model.nothing:lambda_N'] = np.ones(N, np.float32)
  with pytest.raises(InputError, match='they are not those of this merge') as error:
    merged({'masks': write(tmp_path, {**masks, **lambdas})})
  assert error.value.problems == (
    f'{lost}: missing',
    f'{short}: [2, 3], expected [2, 4]',
    'model.nothing:lambda_N: nothing that is merged so',
  )


def test_other_experts(tmp_path):
  path = write(tmp_path, some_masks(), ['math', 'code'])
  with pytest.raises(InputError, match='made for the experts math, code') as error:
    merged({'masks': path})
  assert error.value.problems == ('this merge has expert_0, expert_1',)


def test_a_file_that_is_none_of_masks(tmp_path):
  two = np.full((N, 4), 2, np.uint8)
  nan = np.full(N, np.nan, np.float32)
  arrays = {'a:mask_NxS': two, 'b:lambda_N': nan, 'c.weight': nan}
  with pytest.raises(InputError, match='no masks and no coefficients') as error:
    merged({'masks': write(tmp_path, arrays)})
  assert sorted(error.value.problems) == [
    'a:mask_NxS: other numbers than 0 and 1',
    'b:lambda_N: NaN or Inf',
    'c.weight: F32 [2]',
  ]
  with pytest.raises(InputError, match='no list of experts in its metadata'):
    merged({'masks': write(tmp_path, some_masks(), None)})
  with pytest.raises(InputError, match=r'both masks and rank_ratio 0\.5'):
    RankMask(masks='masks.safetensors', rank_ratio=0.5)


def test_rules_with_weights_or_other_parameters(tmp_path):
  path = write(tmp_path, some_masks())
  hidden = {'match': 'proj', 'action': 'method'}
  rest = {'match': '', 'action': 'task_arithmetic'}
  with pytest.raises(InputError, match='they are not those of this merge') as error:
    merged({'masks': path}, rules=[hidden, {**rest, 'weights': (1, 2)}])
  assert 'model.norm.weight: its rule has weights' in error.value.problems
  other = {'match': 'up_proj', 'action': 'method', 'method': ('rank_mask', {})}
  with pytest.raises(InputError, match='rules with other parameters of it'):
    merged({'masks': path}, rules=[other, hidden, rest])


def test_folders_know_the_file_by_its_content(tmp_path):
  folders = [
    str(write_folder(tmp_path / name, weights))
    for name, weights in zip(['base', *IDS], [BASE, *EXPERTS], strict=True)
  ]
  masks = some_masks()
  path = write(tmp_path, masks)
  config = MergeConfig(
    base=folders[0],
    experts=folders[1:],
    output=str(tmp_path / 'out'),
    method=RankMask(masks=path),
    output_dtype='float32',
  )
  manifest = resmerge_jax.merge(config)
  about = manifest.content['masks']
  assert about['path'] == path
  assert len(about['sha256']) == 64
  write(tmp_path, {name: 1 - mask for name, mask in masks.items()})
  assert (
    prepare(MergeConfig(**{**vars(config), 'overwrite': True})).facts['masks'] != about
  )
  with pytest.raises(InputError, match='masks'):  # not the merge that was made
    prepare(MergeConfig(**{**vars(config), 'resume': True}))
