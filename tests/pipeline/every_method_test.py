"""Every method and post-processor through the whole pipeline, on one device and many."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.methods.table import METHODS, method_of
from resmerge_jax.plan import step_sizes
from tests.methods.battery_test import EXPERTS, SETTINGS, N

BF16 = ml_dtypes.bfloat16
# A vector, a matrix of two layers whose rows eight devices do not divide, an embedding.
SHAPES = {
  'model.embed_tokens.weight': (37, 12),
  'model.layers.0.self_attn.q_proj.weight': (13, 12),
  'model.layers.0.input_layernorm.weight': (12,),
  'model.layers.1.self_attn.q_proj.weight': (13, 12),
  'model.layers.1.input_layernorm.weight': (12,),
}
# One setting of each method, and those that read or need something else than it.
NAMES = [
  *{
    method_of(params).name: name for name, params in reversed(SETTINGS.items())
  }.values(),
  *('ties-mergekit', 'dare_ties-mergelm', 'ram-arm-ties', 'warp-tensor'),
  'retention-layer',
]
# Of each kind one: heads; scans of integers, of bits, of Gram matrices; masks; whole
# matrices in float32 and float64.
KINDS = [
  *('resmerge', 'head_only', 'ram', 'ties-official', 'ties-mergekit', 'warp'),
  *('dare_ties-mergelm', 'model_stock', 'karcher', 'tsv', 'retention'),
]
every_method = pytest.mark.parametrize('name', NAMES)
of_rows = pytest.mark.parametrize(
  'name', [k for k in NAMES if not method_of(SETTINGS[k]).whole_matrix(SETTINGS[k])]
)
of_one_expert = pytest.mark.parametrize(
  'name', [k for k in NAMES if method_of(SETTINGS[k]).expects(SETTINGS[k], 1) is None]
)
Weights = dict[str, np.ndarray]


@functools.cache
def base() -> Weights:
  rng = np.random.default_rng(0)
  return {
    name: (0.1 * rng.standard_normal(shape)).astype(BF16)
    for name, shape in SHAPES.items()
  }


@functools.cache
def experts(n: int) -> list[Weights]:
  """About half of the entries unchanged, as bfloat16 experts of RL are."""
  rng = np.random.default_rng(1)
  return [
    {
      name: (
        w.astype(np.float32) + 2e-4 * rng.standard_normal(w.shape).astype(np.float32)
      ).astype(BF16)
      for name, w in base().items()
    }
    for _ in range(n)
  ]


@contextlib.contextmanager
def only(n_devices: int) -> Iterator[None]:
  """The first devices are all there are."""
  devices = jax.devices()[:n_devices]
  with pytest.MonkeyPatch.context() as patch:
    for name in ('devices', 'local_devices'):
      patch.setattr(jax, name, lambda: devices)
    yield


def merge(name: str, given: list[Weights], **more: Any) -> resmerge_jax.MergeResult:
  params = SETTINGS[name]
  method = method_of(params).name
  return resmerge_jax.merge_state_dicts(
    base(), given, method=method, params=params, output_dtype='float32', **more
  )


@functools.cache
def on_one(name: str) -> resmerge_jax.MergeResult:
  with only(1):
    return merge(name, experts(EXPERTS.get(name, N)))


def updates(merged: Mapping[str, np.ndarray]) -> Weights:
  return {name: merged[name] - w.astype(np.float32) for name, w in base().items()}


def assert_agree(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
  """To float32 rounding: of the weights, and of what sums in another order make."""
  for name, b in updates(want).items():
    a = got[name] - base()[name].astype(np.float32)
    error, size = np.linalg.norm(a - b), np.linalg.norm(b)
    rounding = 2.0**-24 * np.linalg.norm(want[name])
    assert error <= 2e-5 * size + rounding, f'{name}: {error:.3g} of {size:.3g}'


def test_every_method_is_here():
  assert {method_of(SETTINGS[name]).name for name in NAMES} == set(METHODS)
  assert len(NAMES) == len(set(NAMES))


@every_method
def test_updates_are_made_recorded_and_finite(name: str):
  result = on_one(name)
  assert {record['name'] for record in result.records} == set(SHAPES)
  for tensor, update in updates(result.tensors).items():
    assert np.isfinite(update).all(), tensor
  hidden = updates(result.tensors)['model.layers.0.self_attn.q_proj.weight']
  assert np.abs(hidden).max() > 0


@pytest.mark.parametrize('name', KINDS)
def test_many_devices_agree_with_one(name: str):
  got = merge(name, experts(EXPERTS.get(name, N)))
  assert_agree(got.tensors, on_one(name).tensors)


@of_rows
def test_blocks_of_rows_give_the_same_bytes(name: str, monkeypatch):
  monkeypatch.setattr(step_sizes, 'STEP_BYTES', 12 * 2 * 4 * 5)  # about five rows
  with only(1):
    got = merge(name, experts(EXPERTS.get(name, N)))
  for tensor, want in on_one(name).tensors.items():
    np.testing.assert_array_equal(got.tensors[tensor], want, err_msg=tensor)


@every_method
def test_experts_equal_to_the_base_change_nothing(name: str):
  with only(1):
    result = merge(name, [base()] * EXPERTS.get(name, N))
  for tensor, update in updates(result.tensors).items():
    np.testing.assert_array_equal(update, 0.0, err_msg=tensor)


@every_method
def test_identical_experts_are_finite(name: str):
  with only(1):
    result = merge(name, experts(1) * EXPERTS.get(name, N))
  for tensor, weights in result.tensors.items():
    assert np.isfinite(weights).all(), tensor


@of_one_expert
def test_one_expert(name: str):
  with only(1):
    result = merge(name, experts(1))
  for tensor, weights in result.tensors.items():
    assert np.isfinite(weights).all(), tensor
