"""ResMerge agrees with the float64 oracle, everywhere the design says so."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.base import apply_update
from resmerge_jax.methods.resmerge import (
  BRANCHES,
  CHOICES,
  CONSENSUS,
  MEAN,
  ZERO,
  ResMerge,
)
from tests.methods import groups
from tests.oracles.resmerge import head as oracle_head
from tests.oracles.resmerge import resmerge

ROWS, COLS = 12, 9
SCALARS = (
  's_R', 'c_R', 'score', 'beta', 'alpha_R', 'n_R', 'S_H', 'norm_R', 'norm_H', 'norm_A',
  'norm_C',
)  # fmt: skip
VARIANTS = CHOICES['variant']
FAMILIES = ('attention', 'ffn', 'other')
ALL_SETTINGS = [
  ({'variant': v, 'backbone': b, 'head_gate': g}, family)
  for v, b, g in itertools.product(VARIANTS, CHOICES['backbone'], CHOICES['head_gate'])
  for family in FAMILIES
]
FEW_SETTINGS = [
  ({'variant': v, 'beta_min': 0.2, 'beta_max': 0.9, 'rho': 0.5}, family)
  for v in VARIANTS
  for family in FAMILIES
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
    update, stats = run(params, family)(delta_NxRxC, head)
    want, scalars = resmerge(delta_NxRxC, family=family, family_scale=scale)
    np.testing.assert_allclose(update, want, atol=1e-6)
    np.testing.assert_allclose(stats['beta'], scalars['beta'], rtol=1e-5)


def run(params: ResMerge, family: str):
  """One matrix, not compiled into a batch."""
  program = groups.merge_all([(params, family)])

  def call(delta_NxRxC: np.ndarray, head) -> tuple:
    (update_B, stats_B), *_ = program(
      delta_NxRxC[None], jax.tree.map(lambda x: x[None], head)
    )
    return update_B[0], {key: value[0] for key, value in stats_B.items()}

  return call


# --- Identities (exact for eps = 0) ---

IDENTITY_PARAMS = [
  ResMerge(variant=v, head_rank=2, eps=0.0) for v in ('paper', 'release')
]


@pytest.fixture(scope='module')
def identities():
  """(deltas, stats, updates) of several groups of three, for both formulas."""
  delta_BxNxRxC = np.stack(
    [groups.experts(3, ROWS, COLS, x, seed=9) for x in (0.0, 0.3, 1.0, 3.0, 1.0)]
  )
  delta_BxNxRxC[-1, 0] *= -1
  program = groups.merge_all([(p, 'attention') for p in IDENTITY_PARAMS])
  return delta_BxNxRxC, program(delta_BxNxRxC, groups.exact_heads(delta_BxNxRxC, 2))


def test_the_two_reliabilities_are_one_number(identities):
  """c_R = sqrt((1 + (N - 1) s_R) / N)."""
  _, results = identities
  for _, stats in results:
    want = np.sqrt((1 + 2 * np.asarray(stats['s_R'])) / 3)
    np.testing.assert_allclose(stats['c_R'], want, atol=1e-5)


def test_norm_of_the_backbone_and_of_the_correction(identities):
  """||A|| = alpha_R n_R; ||C|| = rho S_H ||A||; the update is A + C."""
  delta_BxNxRxC, results = identities
  for params, (update_B, stats) in zip(IDENTITY_PARAMS, results, strict=True):
    on = np.asarray(stats['branch']) == CONSENSUS
    assert on.any()
    want = (stats['alpha_R'] * stats['n_R'])[on]
    np.testing.assert_allclose(stats['norm_A'][on], want, rtol=1e-5)
    want = params.rho * stats['S_H'] * stats['norm_A']
    np.testing.assert_allclose(stats['norm_C'], want, rtol=1e-5)
    for b in np.flatnonzero(on):
      H = np.stack([oracle_head(d, 2) for d in delta_BxNxRxC[b]])
      C = H.mean(0) / np.linalg.norm(H.mean(0)) * float(stats['norm_C'][b])
      norm_A = np.linalg.norm(update_B[b] - C)
      np.testing.assert_allclose(norm_A, stats['norm_A'][b], rtol=1e-5)


def test_release_falls_back_exactly_where_residuals_disagree(identities):
  """c_R <= 1 / sqrt(N) <=> s_R <= 0, for residuals that are not zero."""
  _, ((_, _), (_, stats)) = identities
  falls_back = np.asarray(stats['branch']) == MEAN
  np.testing.assert_array_equal(falls_back, np.asarray(stats['s_R']) <= 0)
  assert falls_back.any()
  assert not falls_back.all()


def test_paper_and_release_updates_are_proportional(identities):
  _, ((paper_B, paper), (release_B, release)) = identities
  on = np.asarray(release['branch']) == CONSENSUS
  np.testing.assert_allclose(
    (paper_B / paper['alpha_R'][:, None, None])[on],
    (release_B / release['alpha_R'][:, None, None])[on],
    atol=1e-5,
  )


# --- Guarded edges ---


def edges(n: int) -> dict[str, np.ndarray]:
  one = groups.experts(1, ROWS, COLS, 0.0)[0]
  sign_N = (-1.0) ** np.arange(n)
  rank_one = np.outer(np.arange(ROWS) - 5.0, np.arange(COLS) - 4.0)
  found = {
    'all_zero': np.zeros((n, ROWS, COLS)),
    'zero_experts': np.stack([one] + [0 * one] * (n - 1)),
    'identical': np.stack([one] * n),
    'opposite': sign_N[:, None, None] * one,
    'rank_one': np.stack([(i + 1.0) * rank_one for i in range(n)]),
    'tiny': 1e-12 * groups.experts(n, ROWS, COLS, 1.0),
    'huge': 1e12 * groups.experts(n, ROWS, COLS, 1.0),
  }
  return {name: x.astype(np.float32) for name, x in found.items()}


@pytest.mark.parametrize('n', [2, 3])
def test_guarded_edges(n: int):
  cases = edges(n)
  delta_BxNxRxC = np.stack(list(cases.values()))
  settings = [(ResMerge(variant=v), 'attention') for v in VARIANTS]
  results = groups.merge_all(settings)(
    delta_BxNxRxC, groups.exact_heads(delta_BxNxRxC, 1)
  )
  at = {name: b for b, name in enumerate(cases)}
  for (params, _), (update_B, stats) in zip(settings, results, strict=True):
    for leaf in jax.tree.leaves((update_B, stats)):
      assert np.isfinite(leaf).all(), params
    for name in ('all_zero', 'rank_one'):  # no residual, and C is measured by A
      np.testing.assert_array_equal(update_B[at[name]], 0.0)
      assert stats['branch'][at[name]] == ZERO
      np.testing.assert_array_equal(stats['norm_R'][at[name]], 0.0)
    assert stats['branch'][at['identical']] == CONSENSUS
    for name in ('s_R', 'c_R', 'S_H', 'alpha_R'):
      np.testing.assert_allclose(stats[name][at['identical']], 1.0, rtol=1e-5)
    for name in set(cases) - {'opposite', 'tiny'}:
      want, _ = resmerge(cases[name], variant=params.variant, family='attention')
      if name != 'rank_one':  # the oracle's residual there is noise of float64
        error = np.linalg.norm(update_B[at[name]] - want)
        assert error <= 2e-5 * np.linalg.norm(want), (name, params)
  (paper, p), (release, r), (initial, i) = results
  b = at['opposite']
  if n == 2:  # directions cancel exactly
    assert [BRANCHES[int(s['branch'][b])] for s in (p, r, i)] == [
      'zero',
      'mean',
      'zero',
    ]
    for update_B in (paper, release, initial):
      np.testing.assert_allclose(update_B[b], 0.0, atol=1e-6)
  b = at['tiny']  # the releases' thresholds are absolute, the paper has none
  assert [BRANCHES[int(s['branch'][b])] for s in (p, r, i)] == [
    'consensus',
    'zero',
    'zero',
  ]
  assert paper[b].any()
  assert not release[b].any()
  assert not initial[b].any()


def test_zero_experts_count_in_n():
  """s_R and S_H of two experts, one unchanged: dropped (release) or a cosine of 0."""
  delta_NxRxC = edges(2)['zero_experts']
  head = groups.exact_heads(delta_NxRxC, 1)
  results = {
    v: run(ResMerge(variant=v), 'attention')(delta_NxRxC, head) for v in VARIANTS
  }
  stats = {v: s for v, (_, s) in results.items()}
  assert [float(stats[v]['S_H']) for v in VARIANTS] == [0.0, 1.0, 1.0]
  assert BRANCHES[int(stats['release']['branch'])] == 'mean'
  residual = delta_NxRxC[0] - oracle_head(delta_NxRxC[0], 1)
  mean = np.linalg.norm(residual) / 2
  np.testing.assert_allclose(stats['release']['norm_A'], mean, rtol=1e-5)


def test_one_expert_keeps_its_residual_and_bounds_its_head():
  """W_0 + R + rho ||R|| H / ||H||."""
  delta_NxRxC = groups.experts(1, ROWS, COLS, 0.0)
  head = groups.exact_heads(delta_NxRxC, 1)
  H = oracle_head(delta_NxRxC[0], 1)
  R = delta_NxRxC[0] - H
  want = R + 0.2 * np.linalg.norm(R) * H / np.linalg.norm(H)
  for variant in VARIANTS:
    update, _ = run(ResMerge(variant=variant), 'ffn')(delta_NxRxC, head)
    np.testing.assert_allclose(update, want, atol=1e-6)


@pytest.mark.parametrize(('rows', 'cols'), [(1, 9), (9, 1), (2, 9)])
def test_heads_that_are_whole_matrices_leave_nothing(rows: int, cols: int):
  delta_NxRxC = groups.experts(3, rows, cols, 1.0)
  k = min(rows, cols)
  head = groups.exact_heads(delta_NxRxC, k)
  for variant in VARIANTS:
    update, stats = run(ResMerge(variant=variant, head_rank=8), 'attention')(
      delta_NxRxC, head
    )
    np.testing.assert_array_equal(update, 0.0)
    assert stats['branch'] == ZERO
  update, _ = run(ResMerge(backbone='none', head_rank=8), 'ffn')(delta_NxRxC, head)
  np.testing.assert_allclose(update, delta_NxRxC.mean(0), atol=1e-6)


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
  np.testing.assert_allclose(apply_update(update, delta_NxRxC), want, atol=1e-6)


# --- Parameters ---


@pytest.mark.parametrize(
  ('settings', 'problems'),
  [
    (
      {'variant': 'papre'},
      ["variant: got 'papre', expected paper | release | release_initial"],
    ),
    ({'head_gate': 'on'}, ["head_gate: got 'on', expected agreement | none"]),
    ({'backbone': 'max'}, ["backbone: got 'max', expected consensus | mean | none"]),
    ({'head_rank': 0}, ['head_rank >= 1: got 0']),
    ({'rho': -0.1}, ['rho >= 0: got -0.1']),
    ({'eps': -1.0}, ['eps >= 0: got -1.0']),
    (
      {'beta_min': 2.0},
      ['0 <= beta_min <= beta_max: got 2.0', '0 <= beta_min <= beta_max: got 1.0'],
    ),
    (
      {'family_scale': {'ffn': 1.0}},
      ["family_scale (attention, ffn, other): got (('ffn', 1.0),)"],
    ),
    ({'rho': -1.0, 'head_rank': -2}, ['head_rank >= 1: got -2', 'rho >= 0: got -1.0']),
  ],
)
def test_parameters_out_of_range(settings: dict, problems: list[str]):
  with pytest.raises(InputError) as error:
    ResMerge(**settings)
  assert error.value.what == 'resmerge: parameters out of range'
  assert list(error.value.problems) == problems
