"""TSV, ISO-C and ISO-CTS agree with LAPACK in float64; what they do where it cannot."""

from typing import Any

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.short_side import BLOCK
from resmerge_jax.methods.iso import IsoC
from resmerge_jax.methods.iso_cts import IsoCts
from resmerge_jax.methods.tsv import Tsv
from tests.methods import groups
from tests.methods.float64_runs import merged
from tests.oracles import spectral

ROWS, COLS = groups.ROWS, groups.COLS
PAIRS = [
  (Tsv(scale=0.7), lambda d: spectral.tsv(d, 0.7)),
  (IsoC(scale=0.7), lambda d: spectral.iso_c(d, 0.7)),
  (IsoCts(scale=0.7), lambda d: spectral.iso_cts(d, 0.7)),
]
every_pair = pytest.mark.parametrize(
  ('params', 'oracle'), PAIRS, ids=lambda p: type(p).__name__
)
EVERY = [Tsv(), IsoC(), IsoCts()]
every_method = pytest.mark.parametrize('params', EVERY, ids=lambda p: type(p).__name__)
ROUNDED = 1e-6  # of a result's norm: float32 products and rounding leave up to 4e-7


def general(n: int = 3, rows: int = ROWS, cols: int = COLS) -> np.ndarray:
  return groups.experts(n, rows, cols, 0.7)


def of_rank(rank: int, seed: int, rows: int = ROWS, cols: int = COLS) -> np.ndarray:
  """Entries are small integers: float32 holds them, so that the rank is exact."""
  rng = np.random.default_rng(seed)
  left, right = (rng.integers(-3, 4, (size, rank)) for size in (rows, cols))
  return (left @ right.T).astype(np.float32)


def assert_agrees(got: np.ndarray, want: np.ndarray, limit: float = ROUNDED) -> None:
  assert np.linalg.norm(got - want) <= limit * np.linalg.norm(want)


@every_pair
@pytest.mark.parametrize(
  'shape',
  [(3, ROWS, COLS), (3, COLS, ROWS), (2, 2 * BLOCK + 9, 4), (2, 4, 2 * BLOCK + 9)],
)
def test_agrees_with_the_oracle(params: Any, oracle: Any, shape: tuple[int, int, int]):
  delta_NxRxC = general(*shape)
  got, stats = merged(params, delta_NxRxC)
  assert_agrees(got, oracle(delta_NxRxC))
  assert stats['branch'] == 'ok'
  assert stats['error'] < 1e-9


@every_pair
@pytest.mark.parametrize(
  'shape', [(COLS, ROWS), (2 * BLOCK + 9, 6), (6, 2 * BLOCK + 9)]
)
def test_bad_condition_takes_the_exact_way(
  params: Any, oracle: Any, shape: tuple[int, int]
):
  """Gram matrices lose the smaller directions; tall matrices too big for a whole SVD
  go by triangles."""
  rng = np.random.default_rng(0)
  experts = []
  for _ in range(2):
    u, v = (np.linalg.qr(rng.standard_normal((s, min(shape))))[0] for s in shape)
    experts.append((u * np.geomspace(1, 1e-8, min(shape))) @ v.T)
  delta_NxRxC = np.float32(experts)
  got, stats = merged(params, delta_NxRxC)
  assert stats['branch'] == 'ok'
  assert_agrees(got, oracle(delta_NxRxC), 1e-6)


def test_stats():
  delta_NxRxC = general()
  sigma_NxS = np.linalg.svd(delta_NxRxC.astype(np.float64), compute_uv=False)
  _, stats = merged(Tsv(), delta_NxRxC)
  share_N = (sigma_NxS[:, :3] ** 2).sum(1) / (sigma_NxS**2).sum(1)
  np.testing.assert_allclose(stats['kept_energy'], share_N, rtol=1e-6)
  update, stats = merged(IsoC(), delta_NxRxC)
  np.testing.assert_allclose(stats['level'], np.linalg.norm(update) / 3, rtol=1e-6)
  sigma = np.linalg.svd(update, compute_uv=False)
  np.testing.assert_allclose(sigma, stats['level'], rtol=1e-6)
  update, stats = merged(IsoCts(), delta_NxRxC)
  sigma = np.linalg.svd(update, compute_uv=False)
  np.testing.assert_allclose(sigma, stats['level'], rtol=1e-6)


def test_one_expert():
  delta_NxRxC = general(1)
  update, stats = merged(Tsv(), delta_NxRxC)
  np.testing.assert_array_equal(update, delta_NxRxC[0])
  assert stats == {'branch': 'single'}
  iso_c, iso_cts = (merged(p, delta_NxRxC)[0] for p in (IsoC(), IsoCts()))
  assert_agrees(iso_cts, iso_c)


@pytest.mark.parametrize('shape', [(3, 2, 7), (2, 1, 7), (2, 7, 1)])
def test_tsv_with_more_experts_than_ranks_is_zero(shape: tuple[int, int, int]):
  update, stats = merged(Tsv(), general(*shape))
  np.testing.assert_array_equal(update, 0.0)
  assert stats == {'branch': 'no_rank'}


@pytest.mark.parametrize('params', [IsoC(), IsoCts()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize('shape', [(2, 1, 7), (2, 7, 1)])
def test_iso_of_one_row_or_column_is_the_sum(params: Any, shape: tuple[int, int, int]):
  delta_NxRxC = general(*shape)
  update, stats = merged(params, delta_NxRxC)
  np.testing.assert_allclose(update, delta_NxRxC.sum(0), rtol=1e-6)
  assert stats['branch'] == 'ok'


@every_method
def test_zero(params: Any):
  update, stats = merged(params, np.zeros((3, ROWS, COLS), np.float32))
  np.testing.assert_array_equal(update, 0.0)
  assert stats['branch'] == 'zero'
  assert stats['error'] == 0.0


def test_an_unchanged_expert_adds_nothing_to_tsv():
  delta_NxRxC = general()
  delta_NxRxC[1] = 0
  update, stats = merged(Tsv(), delta_NxRxC)
  assert stats['branch'] == 'ill_posed'
  (u, s, v), (x, t, y) = (spectral.thin_svd(delta_NxRxC[i]) for i in (0, 2))
  left, right = np.hstack([u[:, :3], x[:, :3]]), np.hstack([v[:, :3], y[:, :3]])
  sigma = np.concatenate([s[:3], t[:3]])
  want = spectral.polar(left) * sigma @ spectral.polar(right).T
  assert_agrees(update, want)


def test_identical_experts_give_tsv_their_leading_part():
  delta_RxC = general(1)[0]
  update, stats = merged(Tsv(), np.stack([delta_RxC] * 3))
  u, sigma, v = spectral.thin_svd(delta_RxC)
  assert_agrees(update, (u[:, :3] * sigma[:3]) @ v[:, :3].T)
  assert stats['branch'] == 'ill_posed'


def test_opposite_experts_cancel_in_tsv():
  delta_RxC = general(1)[0]
  update, stats = merged(Tsv(), np.stack([delta_RxC, -delta_RxC, delta_RxC]))
  u, sigma, v = spectral.thin_svd(delta_RxC)
  assert_agrees(update, (u[:, :3] * sigma[:3]) @ v[:, :3].T / 3)
  assert stats['branch'] == 'ill_posed'


def test_directions_the_sum_lacks_get_no_weight_in_iso_c():
  delta_NxRxC = np.stack([of_rank(2, 0), of_rank(1, 1), np.zeros_like(of_rank(1, 1))])
  update, stats = merged(IsoC(), delta_NxRxC)
  u, sigma, v = spectral.thin_svd(delta_NxRxC.sum(0))
  assert_agrees(update, sigma.mean() * u[:, :3] @ v[:, :3].T)
  assert stats['branch'] == 'ill_posed'


@every_method
@pytest.mark.parametrize('shape', [(ROWS, COLS), (COLS, ROWS)])
def test_ill_posed_matrices_are_finite_and_say_so(params: Any, shape: tuple[int, int]):
  x = general(1, *shape)[0]
  low = [of_rank(1, seed, *shape) for seed in range(3)]
  groups_of_experts = [[x, x, x], [x, -x, x], [x, 0 * x, 0 * x], low]
  for experts in groups_of_experts:
    update, stats = merged(params, np.stack(experts))
    assert np.isfinite(update).all()
    well_posed = (
      isinstance(params, IsoC) and experts is not low
    )  # the sum has full rank
    assert stats['branch'] == ('ok' if well_posed else 'ill_posed')


def test_splits():
  assert IsoCts().split(25, 2) == (21, 2)  # 2.5 rounds to even
  assert IsoCts().split(35, 2) == (27, 4)  # and 3.5
  assert IsoCts().split(3584, 3) == (2867, 239)
  assert IsoCts().split(4, 3) == (4, 0)
  assert IsoCts(common_fraction=0.0).split(9, 3) == (0, 3)
  with pytest.raises(InputError, match='leaves -1 common directions for rank 8'):
    IsoCts(common_fraction=0.0).split(8, 3)


@pytest.mark.parametrize('fraction', [0.0, 1.0])
def test_no_common_and_only_common_directions(fraction: float):
  delta_NxRxC = general()
  update, stats = merged(IsoCts(common_fraction=fraction), delta_NxRxC)
  assert_agrees(update, spectral.iso_cts(delta_NxRxC, 1.0, fraction))
  assert stats['branch'] == 'ok'
  if fraction == 1.0:
    assert_agrees(update, spectral.iso_c(delta_NxRxC))


@every_method
def test_parameters(params: Any):
  for field, wrong in {'scale': np.inf, 'scope': 'all'}.items():
    with pytest.raises(InputError, match=f'{field}: got {wrong!r}, expected'):
      type(params)(**{field: wrong})
  for scope in ('matrices', 'hidden'):
    chosen = type(params)(scope=scope)
    assert groups.method_of(chosen).gets(chosen) == scope
  assert params.scope == 'matrices'


def test_fraction_out_of_range():
  with pytest.raises(InputError, match=r'common_fraction: got 1.5, expected'):
    IsoCts(common_fraction=1.5)
