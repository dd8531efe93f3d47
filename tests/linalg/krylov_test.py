"""The head solver keeps its promise: an accurate head, or an honest estimate."""

import itertools

import chex
import jax
import numpy as np
import pytest

from resmerge_jax.linalg.exact import exact_head
from resmerge_jax.linalg.head import MAX_ERROR, THIN, Head, block_size
from resmerge_jax.linalg.krylov import top_k
from resmerge_jax.pipeline.kernels import CPU_OPTIONS
from tests.linalg import heads
from tests.spectra import ALL, Spectrum

SMALL = [
  pytest.param(list(group), id=f'{rows}x{cols}-k{k}')
  for (k, rows, cols), group in itertools.groupby(
    sorted(ALL, key=lambda s: (s.k, s.rows, s.cols)),
    key=lambda s: (s.k, s.rows, s.cols),
  )
]
LARGE = [(300, 200, 1), (300, 200, 8), (200, 300, 3), (700, 160, 2), (150, 900, 5)]


def assert_rows_of_a_basis(v_KxC: np.ndarray, error: float, name: str) -> None:
  """Orthonormal rows, or shorter where sigma is 0.

  Those of values 1e-3 times the first are known less well; where the head is not good
  enough, they still have no more length than that.
  """
  lengths_K = np.minimum(np.sum(v_KxC**2, axis=1), 1.0)
  far = 5e-3 if error <= MAX_ERROR else 0.2
  np.testing.assert_allclose(
    v_KxC @ v_KxC.T, np.diag(lengths_K), atol=far, err_msg=name
  )


def assert_accurate_or_flagged(
  delta_BxRxC: np.ndarray, head: Head, k: int, names: list[str]
) -> None:
  """The requirement on every matrix, and: no estimate up to MAX_ERROR is too low."""
  k = min(k, *delta_BxRxC.shape[1:])
  assert np.isfinite(head.y_KxR).all()
  for b, name in enumerate(names):
    if min(delta_BxRxC.shape[1:]) > THIN:
      assert_rows_of_a_basis(head.v_KxC[b].astype(np.float64), head.error[b], name)
    want, sigma = heads.lapack(delta_BxRxC[b], k)
    gap, estimate = heads.relative_gap(sigma, k), head.error[b]
    got = heads.product(head.y_KxR[b], head.v_KxC[b])
    if estimate <= MAX_ERROR:
      assert heads.distance(got, want) <= estimate, name
      np.testing.assert_allclose(head.sigma_K[b], sigma[:k], rtol=1e-4, err_msg=name,
                                 atol=1e-6 * sigma[0])  # fmt: skip
      next_sigma = (*sigma, 0.0)[k]
      assert abs(head.sigma_next[b] - next_sigma) <= 1e-3 * sigma[0], name
    elif gap >= 0.9e-3:
      found = exact_head(delta_BxRxC[b], k)
      error = heads.distance(heads.product(found.y_KxR, found.v_KxC), want)
      assert error < heads.exact_tolerance(sigma, k), name
    if gap >= 0.03 and sigma[0] < 100 * sigma[k - 1]:
      assert estimate <= MAX_ERROR, f'{name}: easy, yet flagged ({estimate})'


@pytest.mark.parametrize('group', SMALL)
def test_small_and_thin_matrices(group: list[Spectrum]):
  delta_BxRxC = np.stack([s.matrix(seed) for s in group for seed in range(3)])
  names = [f'{s} {seed}' for s in group for seed in range(3)]
  head = heads.solve(delta_BxRxC, group[0].k)
  assert_accurate_or_flagged(delta_BxRxC, head, group[0].k, names)
  assert head.certified.all()  # all values were computed: none can be missed


@pytest.mark.parametrize('way', heads.WAYS)
@pytest.mark.parametrize(('rows', 'cols', 'k'), LARGE)
def test_larger_matrices(rows: int, cols: int, k: int, way: str):
  assert min(rows, cols) > THIN
  found = heads.larger(rows, cols, k)
  delta_BxRxC = np.stack(list(found.values()))
  head = heads.solve(delta_BxRxC, k, way)
  assert_accurate_or_flagged(delta_BxRxC, head, k, list(found))
  for b, (name, delta_RxC) in enumerate(found.items()):
    share = np.linalg.svd(delta_RxC.astype(np.float64), compute_uv=False) ** 2
    share /= max(share.sum(), 1e-300)
    # Necessary: what lies beyond the P vectors kept is less than sigma_k^2.
    beyond = 1 - share[: block_size(k)].sum()
    if head.certified[b] and delta_RxC.any():
      assert beyond < share[k - 1], name
    # Sufficient, with room for float32: the rest beside the head is less.
    if 1 - share[:k].sum() < share[k - 1] - 1e-4:
      assert head.certified[b], name


def test_certified_fails_where_energy_is_left():
  found = heads.larger(300, 200, 1)
  names = ['strong_head', 'rank_k', 'zero', 'gaussian', 'flat', 'power']
  head = heads.solve(np.stack([found[name] for name in names]), 1)
  assert head.certified.tolist() == [True, True, True, False, False, False]


def test_a_start_that_misses_the_largest_value_is_not_certified():
  """The start has no part in the direction of sigma_1, so the solver cannot see it."""
  sigmas = 0.5 ** np.arange(200.0)
  delta_RxC = np.diag(sigmas).astype(np.float32)
  blind_PxC = np.hstack([np.zeros((4, 1), np.float32), heads.start(1, 199)])
  head = heads.compiled(1)(delta_RxC, blind_PxC)
  np.testing.assert_allclose(head.sigma_K, [0.5], rtol=1e-6)
  assert head.error <= MAX_ERROR  # an estimate cannot know
  assert not head.certified


@pytest.mark.parametrize(('rows', 'cols', 'k'), [(300, 200, 8), (72, 56, 3)])
def test_head_is_orthonormal_and_scaled(rows: int, cols: int, k: int):
  delta_RxC = heads.larger(rows, cols, k)['geometric']
  head = heads.solve(np.stack([delta_RxC] * 2), k)
  y_KxR, v_KxC = head.y_KxR[0].astype(np.float64), head.v_KxC[0].astype(np.float64)
  np.testing.assert_allclose(v_KxC @ v_KxC.T, np.eye(k), atol=2e-6)
  sigma_K = np.linalg.norm(y_KxR, axis=1)
  np.testing.assert_allclose(head.sigma_K[0], sigma_K, rtol=1e-6)
  assert (np.diff(head.sigma_K[0]) < 0).all()
  np.testing.assert_allclose(y_KxR, v_KxC @ delta_RxC.T, atol=1e-6)


@pytest.mark.parametrize('way', heads.WAYS)
def test_zero_matrix_has_a_zero_head(way: str):
  shapes = [(72, 56), (1, 64), (64, 1), (1, 1)] if way == 'as_small' else []
  for rows, cols in [(300, 200), *shapes]:
    head = heads.solve(np.zeros((1, rows, cols), np.float32), 1, way)
    assert not head.y_KxR.any()
    assert not head.sigma_K.any()
    assert (head.error, head.sigma_next, head.certified) == (0.0, 0.0, True)


def test_the_whole_matrix_is_its_head_where_k_reaches_the_short_side():
  rng = np.random.default_rng(0)
  for rows, cols in [(6, 40), (40, 6), (1, 9), (9, 1)]:
    delta_RxC = rng.standard_normal((rows, cols), np.float32)
    head = heads.solve(delta_RxC[None], 8)
    assert head.v_KxC.shape == (1, min(rows, cols), cols)
    got = heads.product(head.y_KxR[0], head.v_KxC[0])
    assert heads.distance(got, delta_RxC) <= head.error[0] < 1e-5
    assert head.sigma_next[0] == 0.0


@pytest.mark.parametrize(
  ('rows', 'cols', 'k', 'way'),
  [(300, 200, 1, 'as_small'), (72, 56, 3, 'as_small'), (200, 300, 2, 'sampled')],
)
def test_a_batch_gives_what_single_matrices_give(
  rows: int, cols: int, k: int, way: str
):
  """Members of a batch need different numbers of cycles and must not disturb others."""
  found = heads.larger(rows, cols, k)
  names = ['near_tie_0.03', 'strong_head', 'zero', 'tiny', 'gaussian']
  delta_BxRxC = np.stack([found[name] for name in names])
  stack = jax.jit(
    jax.vmap(heads.solver((k,), way), in_axes=(0, None)), compiler_options=CPU_OPTIONS
  )
  (batch,) = jax.device_get(stack(delta_BxRxC, heads.start(k, cols)))
  for b, name in enumerate(names):
    one = heads.solve(delta_BxRxC[b : b + 1], k, way)
    chex.assert_trees_all_close(one.sigma_K[0], batch.sigma_K[b], rtol=1e-5)
    assert one.certified[0] == batch.certified[b]
    got = heads.product(batch.y_KxR[b], batch.v_KxC[b])
    want = heads.product(one.y_KxR[0], one.v_KxC[0])
    assert heads.distance(got, want) <= one.error[0] + batch.error[b], name


def test_scaling_by_a_power_of_two_scales_the_head_alone():
  delta_RxC = heads.larger(300, 200, 1)['power']
  head = heads.solve(
    np.stack([delta_RxC, 2.0**-40 * delta_RxC, 2.0**40 * delta_RxC]), 1
  )
  np.testing.assert_allclose(head.error, head.error[0], rtol=1e-3)
  np.testing.assert_allclose(
    head.sigma_K[:, 0] / head.sigma_K[0, 0], [1, 2.0**-40, 2.0**40], rtol=1e-6
  )


@pytest.mark.parametrize('way', heads.WAYS)
def test_values_at_rounding_are_left_to_float64(way: str):
  """sigma_2^2 is 1.5 units of round-off: the solver finds it mostly, and cannot know."""
  delta_RxC = heads.larger(300, 200, 2)['far_below_0.0003']
  head = heads.solve(delta_RxC[None], 2, way)
  assert head.error[0] > MAX_ERROR
  assert heads.solve(delta_RxC[None], 1, way).error[0] <= MAX_ERROR


@pytest.mark.parametrize('way', heads.WAYS)
def test_all_energy_in_fewer_columns_than_a_block_has_rows(way: str):
  """What new directions the solver then finds are only rounding, and must not stay."""
  delta_RxC = np.zeros((70, 1500), np.float32)
  delta_RxC[:, 300:305] = heads.larger(70, 1500, 4)['geometric'][:, :5]
  head = heads.solve(delta_RxC[None], 4, way)
  assert_accurate_or_flagged(delta_RxC[None], head, 4, ['five columns'])


@pytest.mark.parametrize('way', ['sampled', 'in_blocks'])
@pytest.mark.parametrize('k', [1, 3, 8])
def test_a_sample_without_the_updated_rows(way: str, k: int):
  """Every fourth row is zero, so what the start is made of knows nothing."""
  found = heads.larger(300, 200, k)
  names = ['geometric', 'power', 'rank_k', 'strong_head', 'wide_range']
  names += ['far_below_0.0003', 'near_tie_0.03']
  delta_BxRxC = np.stack([found[name] for name in names])
  delta_BxRxC[:, ::4] = 0
  assert_accurate_or_flagged(
    delta_BxRxC, heads.solve(delta_BxRxC, k, way), k, ['no gap known'] * len(names)
  )


def test_two_calls_trace_once():
  chex.clear_trace_counter()
  solver = jax.jit(chex.assert_max_traces(top_k, 1), static_argnums=1)
  for seed in range(2):
    delta_RxC = np.random.default_rng(seed).standard_normal((20, 10), np.float32)
    solver(delta_RxC, 2, heads.start(2, 10, seed))


@pytest.mark.parametrize(
  ('rows', 'cols', 'ks', 'way'),
  [
    (300, 200, (1, 2, 4), 'as_small'),
    (300, 200, (1, 2, 4), 'in_blocks'),
    (60, 90, (1, 3), 'as_small'),
  ],
)
def test_heads_of_several_ranks_from_one_iteration(rows, cols, ks, way):
  """Each keeps the promise of a head of its rank, also where a tie is inside the largest."""
  found = heads.larger(rows, cols, max(ks))
  names = [
    n for n in found if n.startswith(('near_tie', 'tie', 'power', 'zero', 'rank'))
  ]
  solve = jax.jit(heads.solver(ks, way), compiler_options=CPU_OPTIONS)
  start = heads.start(max(ks), cols)
  of_all = [jax.device_get(solve(found[name], start)) for name in names]
  for at, k in enumerate(ks):
    head = jax.tree.map(lambda *x: np.stack(x), *[of_one[at] for of_one in of_all])
    assert head.y_KxR.shape == (len(names), k, rows)
    delta_BxRxC = np.stack([found[name] for name in names])
    assert_accurate_or_flagged(delta_BxRxC, head, k, names)
