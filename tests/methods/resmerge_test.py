"""ResMerge agrees with the float64 oracle, everywhere the design says so."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.resmerge import CONSENSUS, MEAN, ZERO
from resmerge_jax.methods.resmerge_params import CHOICES, ResMerge
from tests.methods import groups
from tests.methods.groups import COLS, ROWS, VARIANTS
from tests.oracles.resmerge import resmerge

SCALARS = (
  's_R', 'c_R', 'score', 'beta', 'alpha_R', 'n_R', 'S_H', 'norm_R', 'norm_H', 'norm_A',
  'norm_C',
)  # fmt: skip
FAMILIES = ('attention', 'ffn', 'other')
FEW_SETTINGS = [
  ({'variant': v, 'beta_min': 0.2, 'beta_max': 0.9, 'rho': 0.5}, family)
  for v in VARIANTS
  for family in FAMILIES
]
# A family is a factor of the score, which backbones and gates come after.
ALL_SETTINGS = FEW_SETTINGS + [
  ({'variant': v, 'backbone': b, 'head_gate': g}, 'ffn')
  for v, b, g in itertools.product(VARIANTS, CHOICES['backbone'], CHOICES['head_gate'])
]


def batch(n: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Groups of n experts: agreeing, independent, opposed, and with a zero expert."""
  found = {
    'agree': groups.experts(n, ROWS, COLS, 3.0, seed),
    'alike': groups.experts(n, ROWS, COLS, 0.5, seed + 1),
    'independent': groups.experts(n, ROWS, COLS, 0.0, seed + 2),
    'small': np.float32(1e-4) * groups.experts(n, ROWS, COLS, 1.0, seed + 3),
    'opposed': groups.experts(n, ROWS, COLS, 1.0, seed + 4),
    'zero_expert': groups.experts(n, ROWS, COLS, 1.0, seed + 5),
  }
  found['opposed'][::2] *= -1
  if n > 1:
    found['zero_expert'][0] = 0
  return found


def expected_branch(params: ResMerge, fallback: str | None) -> int:
  if params.backbone != 'consensus':
    return MEAN if params.backbone == 'mean' else ZERO
  if fallback is None:
    return CONSENSUS
  mean = params.variant == 'release' and fallback != 'all_zero'
  return MEAN if mean else ZERO


@pytest.mark.parametrize(
  ('n', 'k', 'settings'),
  [
    (1, 1, FEW_SETTINGS),
    (2, 1, FEW_SETTINGS),
    (3, 2, ALL_SETTINGS),
    (5, 3, FEW_SETTINGS),
  ],
  ids=['n1-k1', 'n2-k1', 'n3-k2', 'n5-k3'],
)
def test_agrees_with_the_oracle(n: int, k: int, settings: list):
  cases = batch(n)
  delta_BxNxRxC = np.stack(list(cases.values()))
  chosen = [(ResMerge(head_rank=k, **p), family) for p, family in settings]
  results = groups.merge_all(chosen)(
    delta_BxNxRxC, groups.exact_heads(delta_BxNxRxC, k)
  )
  for (params, family), (update_B, stats_B) in zip(settings, results, strict=True):
    for b, name in enumerate(cases):
      about = f'{name} {params} {family}'
      want, scalars = resmerge(delta_BxNxRxC[b], family=family, head_rank=k, **params)
      error = np.linalg.norm(update_B[b] - want)
      assert error <= 2e-5 * np.linalg.norm(want) + 1e-12, about
      for key in SCALARS:
        np.testing.assert_allclose(
          stats_B[key][b], scalars[key], rtol=3e-5, atol=1e-5, err_msg=f'{about} {key}'
        )
      branch = expected_branch(ResMerge(**params), scalars['fallback'])
      assert stats_B['branch'][b] == branch, about


def test_families_of_any_name_count_as_other():
  params = ResMerge()
  assert [params.scale_of(f) for f in FAMILIES] == [1.0, 0.25, 0.0]
  for family in ('norm', 'embed_lm_head', None):
    assert params.scale_of(family) == 0.0
  own = {'attention': 0.5, 'ffn': 0.6, 'other': 0.7}
  assert ResMerge(family_scale=own).scale_of('norm') == 0.7
  assert ResMerge(variant='release').scale_of('ffn') == 1.0


def test_own_family_scale_agrees_with_the_oracle():
  scale = {'attention': 0.3, 'ffn': 0.9, 'other': 0.5}
  delta_NxRxC = batch(3)['alike']
  head = groups.exact_heads(delta_NxRxC, 1)
  params = ResMerge(family_scale=scale)
  assert hash(params) == hash(ResMerge(family_scale=dict(reversed(scale.items()))))
  for family in FAMILIES:
    update, stats = groups.merge_one(params, family)(delta_NxRxC, head)
    want, scalars = resmerge(delta_NxRxC, family=family, family_scale=scale)
    np.testing.assert_allclose(update, want, atol=1e-6)
    np.testing.assert_allclose(stats['beta'], scalars['beta'], rtol=1e-5)


def test_update_weights_the_stored_deltas_and_triplets():
  """sum_i a_i D_i + sum_i (b - a_i) H_i: nothing of size RxC beside the deltas."""
  delta_NxRxC = jnp.asarray(batch(3)['alike'])
  head = groups.exact_heads(np.asarray(delta_NxRxC), 2)
  merge = functools.partial(groups.merge, ResMerge(head_rank=2), 'ffn')
  update, _ = groups.compiled(merge)(delta_NxRxC, head)
  assert update.a_N.shape == (3,)
  assert update.w_T.shape == (6,)
  assert update.u_TxR.shape == (6, ROWS)
  assert update.v_TxC.shape == (6, COLS)
  w_NxK = update.w_T.reshape(3, 2)
  np.testing.assert_allclose(w_NxK[:, 0], w_NxK[:, 1])
  np.testing.assert_allclose(
    w_NxK[:, 0] + update.a_N, w_NxK[0, 0] + update.a_N[0], rtol=1e-5
  )
  want, _ = resmerge(np.asarray(delta_NxRxC), family='ffn', head_rank=2)
  np.testing.assert_allclose(groups.applied(update, delta_NxRxC), want, atol=1e-6)


@pytest.mark.parametrize(
  ('settings', 'problems'),
  [
    (
      {'variant': 'papre'},
      ["variant: got 'papre', expected paper | release | release_initial"],
    ),
    (
      {'head_gate': 'on'},
      ["head_gate: got 'on', expected agreement | none | conflict"],
    ),
    ({'backbone': 'max'}, ["backbone: got 'max', expected consensus | mean | none"]),
    ({'head_rank': 0}, ['1 <= head_rank <= 64: got 0']),
    ({'rho': -0.1}, ['0 <= rho, finite: got -0.1']),
    ({'eps': -1.0}, ['0 <= eps, finite: got -1.0']),
    (
      {'beta_min': 2.0},
      ['0 <= beta_min <= beta_max: got 2.0', '0 <= beta_min <= beta_max: got 1.0'],
    ),
    (
      {'family_scale': {'fnn': 1.0}},
      ["family_scale (attention, ffn, other: finite numbers): got (('fnn', 1.0),)"],
    ),
    (
      {'rho': -1.0, 'head_rank': -2},
      ['1 <= head_rank <= 64: got -2', '0 <= rho, finite: got -1.0'],
    ),
  ],
)
def test_parameters_out_of_range(settings: dict, problems: list[str]):
  with pytest.raises(InputError) as error:
    ResMerge(**settings)
  assert error.value.what == 'resmerge: parameters out of range'
  assert list(error.value.problems) == problems
