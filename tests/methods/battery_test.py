"""Properties that every method of the table has."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.head import Head
from resmerge_jax.methods.breadcrumbs import Breadcrumbs
from resmerge_jax.methods.components import HeadOnly, ResidualOnly
from resmerge_jax.methods.dare import Dare, DareTies
from resmerge_jax.methods.della import Della
from resmerge_jax.methods.iso import IsoC
from resmerge_jax.methods.iso_cts import IsoCts
from resmerge_jax.methods.linear import Linear
from resmerge_jax.methods.model_stock import ModelStock
from resmerge_jax.methods.nearswap import NearSwap
from resmerge_jax.methods.ram import Ram
from resmerge_jax.methods.rank_mask import RankMask
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.methods.retention import Retention
from resmerge_jax.methods.sce import Sce
from resmerge_jax.methods.slerp import NuSlerp, Slerp
from resmerge_jax.methods.spherical_means import Karcher, MultiSlerp
from resmerge_jax.methods.star import Star
from resmerge_jax.methods.table import METHODS, method_of
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.methods.ties import Ties
from resmerge_jax.methods.tsv import Tsv
from resmerge_jax.methods.warp import Warp
from tests.methods import groups
from tests.methods.float64_runs import precision_of

N, SIDE = 3, 10  # square, so that transposed matrices share the compiled program
SETTINGS: dict[str, Any] = {
  'resmerge': ResMerge(),
  'resmerge-release': ResMerge(variant='release', head_rank=3),
  'resmerge-release_initial': ResMerge(variant='release_initial', head_rank=2),
  'resmerge-mean': ResMerge(backbone='mean', head_gate='none'),
  'resmerge-conflict': ResMerge(head_gate='conflict'),
  'resmerge-head_only': ResMerge(backbone='none'),
  'task_arithmetic': TaskArithmetic(),
  'task_arithmetic-sum': TaskArithmetic(reduce='sum', scale=0.7),
  'ram': Ram(),
  'ram-arm': Ram(mode='arm'),
  'ram-arm-r': Ram(mode='arm-r', rescale=1.2),
  'ram-arm-ties': Ram(mode='arm-ties'),
  'ram-arm-unique': Ram(mode='arm-unique', target=1),
  'slerp': Slerp(),
  'slerp-task_vectors': Slerp(on='task_vectors'),
  'nuslerp': NuSlerp(),
  'nuslerp-weights': NuSlerp(on='weights'),
  'nuslerp-rows': NuSlerp(flatten=False),
  'multislerp': MultiSlerp(),
  'karcher': Karcher(),
  'model_stock': ModelStock(),
  'model_stock-rows': ModelStock(filter_wise=True),
  'warp': Warp(),
  'warp-tensor': Warp(group='tensor', eta=0.7),
  'retention': Retention(),
  'retention-layer': Retention(tau=0.2, group='layer', rescale=True),
  'linear': Linear(weights=(0.5, 0.5, 0.5)),
  'linear-sum': Linear(weights=(1 / 3, 1 / 3, 1 / 3), normalize=False),
  'ties-official': Ties(),
  'ties-mergekit': Ties(flavour='mergekit', scale=0.7),
  'ties-peft': Ties(flavour='peft', reduce='sum'),
  'dare-mergekit': Dare(density=0.5),
  'dare-peft': Dare(flavour='peft', density=0.5),
  'dare_ties-mergekit': DareTies(density=0.5),
  'dare_ties-peft': DareTies(flavour='peft', density=0.5),
  'dare_ties-mergelm': DareTies(flavour='mergelm', density=0.5),
  'della': Della(),
  'della-linear': Della(elect=False),
  'breadcrumbs': Breadcrumbs(density=0.5, gamma=0.1),
  'breadcrumbs-ties': Breadcrumbs(density=0.5, gamma=0.1, elect=True),
  'sce': Sce(),
  'nearswap': NearSwap(t=0.01),
  'tsv': Tsv(),
  'iso_c': IsoC(scale=0.7),
  'iso_cts': IsoCts(common_fraction=0.6),
  'star': Star(),
  'rank_mask': RankMask(rank_ratio=0.5),
  'head_only': HeadOnly(head_rank=2),
  'residual_only': ResidualOnly(expert=2),
}
# Settings that take another number of experts than N.
EXPERTS = {name: 2 for name in SETTINGS if name.startswith(('slerp', 'nuslerp'))}
EXPERTS['nearswap'] = 1
ROWS_ALONE = {
  'test_transposing_commutes': 'rows are treated one by one',
  'test_rotating_rows_and_columns_commutes': 'rows are treated one by one',
}
ENTRIES = {
  'test_scaling_all_updates_scales_the_merge': 'the threshold of a change is absolute',
  'test_rotating_rows_and_columns_commutes': 'entries are treated one by one',
}
TURNED = {
  'test_rotating_rows_and_columns_commutes': 'entries are treated one by one',
}
MASKS = {
  **TURNED,
  'test_transposing_commutes': 'masks belong to places',
  'test_order_of_experts_is_irrelevant': 'masks belong to experts; here, to places',
}
# What a setting has not, and why: {setting: {test: reason}}.
LACKS: dict[str, dict[str, str]] = {
  'ram': ENTRIES,
  'ram-arm': ENTRIES,
  'ram-arm-r': ENTRIES,
  'ram-arm-ties': ENTRIES,
  'ram-arm-unique': {
    **ENTRIES,
    'test_order_of_experts_is_irrelevant': 'one expert is singled out by its place',
  },
  'nuslerp-rows': ROWS_ALONE,
  'model_stock-rows': ROWS_ALONE,
  'warp': {
    'test_order_of_experts_is_irrelevant': 'experts join one after the other: three or '
    'more in another order get other weights, by design of the paper'
  },
}
LACKS['warp-tensor'] = LACKS['warp']
LACKS['nearswap'] = ENTRIES
LACKS['iso_cts'] = {
  'test_transposing_commutes': 'experts are projected on the left side alone',
}
for setting in ('head_only', 'residual_only'):
  LACKS[setting] = {
    'test_order_of_experts_is_irrelevant': 'one expert is singled out by its place',
  }
for setting in SETTINGS:
  if setting.startswith(('ties', 'breadcrumbs', 'sce')):
    LACKS[setting] = TURNED
  if setting.startswith(('dare', 'della')):
    LACKS[setting] = MASKS


def every_method(test: Any) -> Any:
  names = [name for name in SETTINGS if test.__name__ not in LACKS.get(name, {})]
  return pytest.mark.parametrize('name', names)(test)


def update_of(
  params: Any, delta_NxRxC: jax.Array, head: Head | None, found: groups.Found
) -> jax.Array:
  update, _ = groups.merge(params, 'attention', delta_NxRxC, head, found=found)
  return groups.applied(update, delta_NxRxC)


@functools.cache
def program(name: str) -> Any:
  return groups.compiled(functools.partial(update_of, SETTINGS[name]))


def heads_for(name: str, delta_xNxRxC: np.ndarray) -> Head | None:
  k = method_of(SETTINGS[name]).head_rank(SETTINGS[name])
  return groups.exact_heads(delta_xNxRxC, k) if k else None


def given(name: str, delta_NxRxC: np.ndarray) -> tuple:
  """The arguments of the program: experts, heads, what scans find."""
  found = groups.found(SETTINGS[name], delta_NxRxC)
  return delta_NxRxC, heads_for(name, delta_NxRxC), found


def merged(name: str, delta_NxRxC: np.ndarray) -> np.ndarray:
  with precision_of(SETTINGS[name]):
    return np.asarray(program(name)(*given(name, delta_NxRxC)))


def general(name: str, seed: int = 0) -> np.ndarray:
  return groups.experts(EXPERTS.get(name, N), SIDE, SIDE, 0.7, seed)


def test_what_a_setting_lacks_is_tested_of_others():
  assert LACKS.keys() | EXPERTS.keys() <= SETTINGS.keys()
  assert {test for tests in LACKS.values() for test in tests} <= globals().keys()


def test_every_method_is_here():
  assert {method_of(params).name for params in SETTINGS.values()} == set(METHODS)
  assert all(isinstance(m.params(), m.params) for m in METHODS.values())
  assert all(m.name == name and m.source for name, m in METHODS.items())


def test_unknown_parameters_name_what_is_known():
  with pytest.raises(InputError) as error:
    method_of({'rho': 0.2})
  assert error.value.what == 'method: got parameters of type dict'
  assert 'pass one of ResMerge, TaskArithmetic' in str(error.value)


@every_method
def test_zero_updates_give_exactly_zero(name: str):
  zero = 0 * general(name)
  np.testing.assert_array_equal(merged(name, zero), 0.0)


@every_method
def test_order_of_experts_is_irrelevant(name: str):
  delta_NxRxC = general(name)
  places = np.arange(len(delta_NxRxC))
  for order in (np.roll(places, -1), places[::-1]):
    np.testing.assert_allclose(
      merged(name, delta_NxRxC[order]), merged(name, delta_NxRxC), atol=1e-6
    )


@every_method
@pytest.mark.parametrize('scale', [2.0**-6, 2.0**8])
def test_scaling_all_updates_scales_the_merge(name: str, scale: float):
  delta_NxRxC = general(name)
  np.testing.assert_allclose(
    merged(name, np.float32(scale) * delta_NxRxC) / scale,
    merged(name, delta_NxRxC),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  'name',
  {method_of(p).name: k for k, p in SETTINGS.items() if hasattr(p, 'scale')}.values(),
)
def test_scale_is_that_of_the_update(name: str):
  """As of the post-processor liti, for methods that have no scale."""
  params, delta_NxRxC = SETTINGS[name], general(name)
  doubled = dataclasses.replace(params, scale=2 * params.scale)
  with precision_of(params):
    update = groups.compiled(functools.partial(update_of, doubled))
    got = update(*given(name, delta_NxRxC))
  np.testing.assert_allclose(got, 2 * merged(name, delta_NxRxC), rtol=1e-6, atol=1e-7)


@every_method
def test_transposing_commutes(name: str):
  delta_NxRxC = general(name)
  got = merged(name, np.ascontiguousarray(delta_NxRxC.transpose(0, 2, 1)))
  np.testing.assert_allclose(got.T, merged(name, delta_NxRxC), atol=1e-6)


@every_method
def test_rotating_rows_and_columns_commutes(name: str):
  rng = np.random.default_rng(1)
  q, p = (np.linalg.qr(rng.standard_normal((SIDE, SIDE)))[0] for _ in range(2))
  delta_NxRxC = general(name)
  got = merged(name, (q @ delta_NxRxC.astype(np.float64) @ p).astype(np.float32))
  np.testing.assert_allclose(got, q @ merged(name, delta_NxRxC) @ p, atol=2e-6)


@every_method
def test_a_stack_gives_what_its_matrices_give(name: str):
  delta_LxNxRxC = np.stack([general(name, 0), 0 * general(name, 1), general(name, 2)])
  one = functools.partial(update_of, SETTINGS[name])
  stack = groups.compiled(jax.vmap(one))
  given_L = [given(name, delta_NxRxC) for delta_NxRxC in delta_LxNxRxC]
  with precision_of(SETTINGS[name]):
    got = stack(*jax.tree.map(lambda *x_L: np.stack(x_L), *given_L))
  want = np.stack([merged(name, delta_NxRxC) for delta_NxRxC in delta_LxNxRxC])
  np.testing.assert_allclose(got, want, atol=1e-6)


@every_method
def test_finite_on_degenerate_experts(name: str):
  n, x_RxC, zero = (
    EXPERTS.get(name, N),
    general(name)[0],
    np.zeros((SIDE, SIDE), np.float32),
  )
  rank_one = np.outer(np.arange(10.0), np.ones(10)).astype(np.float32)
  for experts in (
    [x_RxC, zero, zero],
    [x_RxC, x_RxC, x_RxC],
    [x_RxC, -x_RxC, zero],
    [rank_one, -rank_one, rank_one.T],
    [1e-15 * x_RxC] * 3,
    [1e15 * x_RxC, x_RxC, zero],
  ):
    assert np.isfinite(merged(name, np.stack(experts[:n]))).all()


@pytest.mark.parametrize(
  'name', {method_of(p).name: k for k, p in reversed(SETTINGS.items())}.values()
)
def test_compiled_and_op_by_op_agree(name: str):
  delta_NxRxC = jnp.asarray(general(name))
  with jax.disable_jit(), precision_of(SETTINGS[name]):
    plain = update_of(SETTINGS[name], delta_NxRxC, *given(name, general(name))[1:])
  np.testing.assert_allclose(plain, merged(name, general(name)), atol=1e-6)


@every_method
def test_two_calls_trace_once(name: str):
  chex.clear_trace_counter()
  traced = jax.jit(chex.assert_max_traces(update_of, 1), static_argnums=0)
  with precision_of(SETTINGS[name]):
    for seed in range(2):
      traced.lower(SETTINGS[name], *given(name, general(name, seed)))
