"""ResMerge: identities of the equations, and the edges where experts degenerate."""

import jax
import numpy as np
import pytest

from resmerge_jax.methods.resmerge import BRANCHES, CONSENSUS, MEAN, ZERO
from resmerge_jax.methods.resmerge_params import ResMerge
from tests.methods import groups
from tests.methods.groups import COLS, ROWS, VARIANTS
from tests.oracles.resmerge import head as oracle_head
from tests.oracles.resmerge import resmerge

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
    v: groups.merge_one(ResMerge(variant=v), 'attention')(delta_NxRxC, head)
    for v in VARIANTS
  }
  stats = {v: s for v, (_, s) in results.items()}
  assert [float(stats[v]['S_H']) for v in VARIANTS] == [0.0, 1.0, 1.0]
  assert BRANCHES[int(stats['release']['branch'])] == 'mean'
  residual = delta_NxRxC[0] - oracle_head(delta_NxRxC[0], 1)
  mean = np.linalg.norm(residual) / 2
  np.testing.assert_allclose(stats['release']['norm_A'], mean, rtol=1e-5)


def test_the_gate_of_conflict_closes_on_negative_cosines_only():
  """Heads in the leading place of a residual that agrees."""
  rest_RxC = np.zeros((ROWS, COLS), np.float32)
  rest_RxC[3, 3] = rest_RxC[4, 4] = 1.0
  heads_3xRxC = np.zeros((3, ROWS, COLS), np.float32)
  heads_3xRxC[0, 0, 0] = heads_3xRxC[1, 1, 1] = 4.0
  heads_3xRxC[2, 0, 0] = -2.0
  zero_RxC = 0 * rest_RxC
  x, y, opposite = heads_3xRxC + rest_RxC
  for variant in VARIANTS:
    gate = groups.merge_one(ResMerge(variant=variant, head_gate='conflict'), 'ffn')
    for experts, want in (
      ([x], 1.0),
      ([x, x], 1.0),
      ([x, y], 1.0),
      ([x, opposite], 0.0),
      ([x, y, opposite], 2 / 3),
      ([x, zero_RxC, opposite], 2 / 3 if variant == 'paper' else 0.0),
    ):
      delta_NxRxC = np.stack(experts)
      _, stats = gate(delta_NxRxC, groups.exact_heads(delta_NxRxC, 1))
      np.testing.assert_allclose(stats['S_H'], want, atol=1e-6)


def test_one_expert_keeps_its_residual_and_bounds_its_head():
  """W_0 + R + rho ||R|| H / ||H||."""
  delta_NxRxC = groups.experts(1, ROWS, COLS, 0.0)
  head = groups.exact_heads(delta_NxRxC, 1)
  H = oracle_head(delta_NxRxC[0], 1)
  R = delta_NxRxC[0] - H
  want = R + 0.2 * np.linalg.norm(R) * H / np.linalg.norm(H)
  for variant in VARIANTS:
    update, _ = groups.merge_one(ResMerge(variant=variant), 'ffn')(delta_NxRxC, head)
    np.testing.assert_allclose(update, want, atol=1e-6)


@pytest.mark.parametrize(('rows', 'cols'), [(1, 9), (9, 1), (2, 9)])
def test_heads_that_are_whole_matrices_leave_nothing(rows: int, cols: int):
  delta_NxRxC = groups.experts(3, rows, cols, 1.0)
  k = min(rows, cols)
  head = groups.exact_heads(delta_NxRxC, k)
  for variant in VARIANTS:
    update, stats = groups.merge_one(
      ResMerge(variant=variant, head_rank=8), 'attention'
    )(delta_NxRxC, head)
    np.testing.assert_array_equal(update, 0.0)
    assert stats['branch'] == ZERO
  update, _ = groups.merge_one(ResMerge(backbone='none', head_rank=8), 'ffn')(
    delta_NxRxC, head
  )
  np.testing.assert_allclose(update, delta_NxRxC.mean(0), atol=1e-6)
