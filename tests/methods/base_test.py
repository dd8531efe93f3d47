"""An update in its two forms becomes the same matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.methods.base import FUSED_TERMS, Dense, LowRank
from tests.methods import groups


def low_rank(n_terms: int) -> tuple[LowRank, np.ndarray]:
  rng = np.random.default_rng(n_terms)
  shapes = [(2,), (n_terms,), (n_terms, 6), (n_terms, 5), (2, 6, 5)]
  *fields, delta_NxRxC = [rng.standard_normal(s).astype(np.float32) for s in shapes]
  return LowRank(*fields), delta_NxRxC


@pytest.mark.parametrize('n_terms', [0, 1, FUSED_TERMS, FUSED_TERMS + 1, 24])
def test_both_paths_give_the_sum_of_terms(n_terms: int):
  update, delta_NxRxC = low_rank(n_terms)
  a_N, w_T, u_TxR, v_TxC = (np.float64(x) for x in update)
  want = np.tensordot(a_N, delta_NxRxC, 1) + (u_TxR.T * w_T) @ v_TxC
  got = groups.compiled(groups.applied)(update, delta_NxRxC)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_more_terms_than_are_fused_change_nothing():
  """Terms of weight zero move the same update from one path to the other."""
  update, delta_NxRxC = low_rank(FUSED_TERMS)
  zeros = np.zeros(1, np.float32)
  longer = LowRank(
    update.a_N,
    np.concatenate([update.w_T, zeros]),
    np.concatenate([update.u_TxR, np.ones((1, 6), np.float32)]),
    np.concatenate([update.v_TxC, np.ones((1, 5), np.float32)]),
  )
  fused = groups.compiled(groups.applied)(update, delta_NxRxC)
  contracted = groups.compiled(groups.applied)(longer, delta_NxRxC)
  np.testing.assert_allclose(fused, contracted, rtol=1e-5, atol=1e-5)


def test_dense_updates_are_passed_on():
  update_RxC = jnp.ones((6, 5))
  assert groups.applied(Dense(update_RxC), jnp.zeros((2, 6, 5))) is update_RxC
