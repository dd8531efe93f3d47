"""peft's functions for task vectors give what ours give."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from resmerge_jax.methods.dare import Dare, DareTies
from resmerge_jax.methods.ties import Ties
from tests.rivals.torch_groups import KINDS, ours, same_masks, weights_of

torch = pytest.importorskip('torch')
merge_utils = pytest.importorskip('peft.utils.merge_utils')

WEIGHTS = ([1.0, 1.0, 1.0], [0.5, 2.0, 1.0], [1.0, -0.5, 0.25])
TOLERANCE = 1e-6  # float32 on both sides, entries of order 1


def theirs(
  merge: Callable[..., Any],
  base_RxC: np.ndarray,
  experts_NxRxC: np.ndarray,
  weights: list[float],
  density: float,
) -> np.ndarray:
  vectors = [torch.from_numpy(x - base_RxC) for x in experts_NxRxC]
  return base_RxC + merge(vectors, torch.tensor(weights), density).numpy()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('weights', WEIGHTS)
def test_ties(kind: str, weights: list[float], monkeypatch: pytest.MonkeyPatch):
  # Which of equal magnitudes it keeps, peft leaves to an unstable selection.
  def first_largest(x: Any, k: int, largest: bool) -> tuple[None, Any]:
    return None, torch.argsort(x, descending=largest, stable=True)[:k]

  monkeypatch.setattr(torch, 'topk', first_largest)
  base_RxC, experts_NxRxC = weights_of(kind)
  for keep in (0.2, 1e-4):
    want = theirs(merge_utils.ties, base_RxC, experts_NxRxC, weights, keep)
    got = ours(Ties('peft', keep), base_RxC, experts_NxRxC, weights)
    np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize(
  ('name', 'params'), [('dare_linear', Dare), ('dare_ties', DareTies)]
)
def test_dare_with_our_masks(
  kind: str,
  weights: list[float],
  name: str,
  params: Any,
  monkeypatch: pytest.MonkeyPatch,
):
  same_masks(monkeypatch, 0.3)
  base_RxC, experts_NxRxC = weights_of(kind)
  want = theirs(getattr(merge_utils, name), base_RxC, experts_NxRxC, weights, 0.3)
  got = ours(params('peft', 0.3), base_RxC, experts_NxRxC, weights)
  np.testing.assert_allclose(got, want, atol=4 * TOLERANCE)
