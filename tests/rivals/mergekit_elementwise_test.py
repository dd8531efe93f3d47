"""mergekit's element-wise methods give the weights that ours give."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.methods import della
from resmerge_jax.methods.breadcrumbs import Breadcrumbs
from resmerge_jax.methods.dare import Dare, DareTies
from resmerge_jax.methods.della import Della
from resmerge_jax.methods.linear import Linear
from resmerge_jax.methods.nearswap import NearSwap
from resmerge_jax.methods.sce import Sce
from resmerge_jax.methods.ties import Ties
from tests.methods import groups
from tests.rivals.torch_groups import COLS, KINDS, ROWS, N, ours, same_masks, weights_of

torch = pytest.importorskip('torch')
pytest.importorskip('mergekit')

WEIGHTS = ([1.0, 1.0, 1.0], [0.5, 2.0, 1.0], [1.0, -0.5, 0.25])
# float32 on both sides, weights of order 1 and a few roundings each
TOLERANCE = 1e-6


def theirs(
  method: str, base_RxC: np.ndarray, experts_NxRxC: np.ndarray, **parameters: Any
) -> np.ndarray:
  """mergekit's merged weights. `base_RxC` is no input of methods without a base."""
  from mergekit.merge_methods import registry
  from mergekit.merge_methods.base import TensorGroup

  inputs = [*experts_NxRxC] if method == 'linear' else [base_RxC, *experts_NxRxC]
  group = TensorGroup.from_tensors(
    [torch.from_numpy(x.copy()) for x in inputs],
    base_index=None if method == 'linear' else 0,
  )
  ids = [entry.id for entry in group.entries if not entry.is_base]
  given = {
    key: dict(zip(ids, value, strict=True)) if isinstance(value, list) else value
    for key, value in parameters.items()
  }
  (merged,) = registry.get(method)([group], parameters=given)
  return merged.numpy()


@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('normalize', [True, False])
def test_linear(weights: list[float], normalize: bool):
  base_RxC, experts_NxRxC = weights_of('float32')
  got = ours(Linear(tuple(weights), normalize), base_RxC, experts_NxRxC, None)
  want = theirs('linear', base_RxC, experts_NxRxC, weight=weights, normalize=normalize)
  np.testing.assert_allclose(got, want, atol=4 * TOLERANCE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('reduce', ['mean', 'sum'])
@pytest.mark.parametrize('weights', WEIGHTS)
def test_ties(
  kind: str, reduce: str, weights: list[float], monkeypatch: pytest.MonkeyPatch
):
  # Which of equal magnitudes it keeps, mergekit leaves to an unstable sort; ours keeps
  # the first, so here its sort is made stable.
  unstable = torch.argsort
  monkeypatch.setattr(torch, 'argsort', lambda x, **kw: unstable(x, stable=True, **kw))
  base_RxC, experts_NxRxC = weights_of(kind)
  for keep in (0.2, 1e-4, 1.0):
    params = Ties('mergekit', keep, 0.7, reduce)
    want = theirs(
      'ties',
      base_RxC,
      experts_NxRxC,
      **{
        'weight': weights,
        'density': [keep] * N,
        'normalize': reduce == 'mean',
        'lambda': 0.7,
      },
    )
    got = ours(params, base_RxC, experts_NxRxC, weights)
    np.testing.assert_allclose(got, want, atol=TOLERANCE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize(
  ('method', 'params'), [('dare_linear', Dare), ('dare_ties', DareTies)]
)
def test_dare_with_our_masks(
  kind: str,
  weights: list[float],
  method: str,
  params: Any,
  monkeypatch: pytest.MonkeyPatch,
):
  same_masks(monkeypatch, 0.3)
  base_RxC, experts_NxRxC = weights_of(kind)
  want = theirs(method, base_RxC, experts_NxRxC, weight=weights, density=[0.3] * N)
  got = ours(params(density=0.3), base_RxC, experts_NxRxC, weights)
  np.testing.assert_allclose(got, want, atol=4 * TOLERANCE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('elect', [True, False])
@pytest.mark.parametrize(('density', 'gamma'), [(0.7, 0.05), (0.99, 0.05), (0.2, 0)])
def test_breadcrumbs(
  kind: str, elect: bool, density: float, gamma: float, monkeypatch: pytest.MonkeyPatch
):
  # Its sort ascends and keeps the last of equal magnitudes, where it is stable; ours
  # keeps the first. So the sort here is stable from the end.
  real = torch.sort

  def from_the_end(x: Any, descending: bool) -> Any:
    values, at = real(x.flip(0), descending=descending, stable=True)
    return torch.return_types.sort((values, len(x) - 1 - at))

  monkeypatch.setattr(torch, 'sort', from_the_end)
  base_RxC, experts_NxRxC = weights_of(kind)
  want = theirs(
    'breadcrumbs_ties' if elect else 'breadcrumbs',
    base_RxC,
    experts_NxRxC,
    weight=WEIGHTS[1],
    density=[density] * N,
    gamma=[gamma] * N,
  )
  got = ours(Breadcrumbs(density, gamma, elect), base_RxC, experts_NxRxC, WEIGHTS[1])
  np.testing.assert_allclose(got, want, atol=4 * TOLERANCE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('elect', [True, False])
def test_della_with_the_same_random_numbers(
  kind: str, elect: bool, monkeypatch: pytest.MonkeyPatch
):
  drawn = np.random.default_rng(0).integers(0, 2**32, (N, ROWS, COLS), np.uint32)
  queue = iter(drawn / 2.0**32)
  unstable = torch.argsort
  monkeypatch.setattr(torch, 'argsort', lambda x, **kw: unstable(x, stable=True, **kw))
  monkeypatch.setattr(
    torch, 'bernoulli', lambda p: (torch.from_numpy(next(queue)) < p).float()
  )
  base_RxC, experts_NxRxC = weights_of(kind)
  want = theirs(
    'della' if elect else 'della_linear',
    base_RxC,
    experts_NxRxC,
    weight=WEIGHTS[1],
    density=[0.5] * N,
    epsilon=[0.2] * N,
  )
  keys_Nx2 = groups.context(N).keys_Nx2
  monkeypatch.setattr(
    della,
    'row_bits',
    lambda key_2, *_: jnp.asarray(drawn)[jnp.argmax((keys_Nx2 == key_2).all(1))],
  )
  params = Della(epsilon=0.2, elect=elect)
  got = ours(params, base_RxC, experts_NxRxC, WEIGHTS[1])
  np.testing.assert_allclose(got, want, atol=4 * TOLERANCE)


@pytest.mark.parametrize('kind', ['float32', 'coarse'])
@pytest.mark.parametrize('select', [0.1, 0.5, 1.0])
def test_sce(kind: str, select: float, monkeypatch: pytest.MonkeyPatch):
  def first_largest(x: Any, k: int, largest: bool) -> tuple[None, Any]:
    return None, torch.argsort(x, descending=largest, stable=True)[:k]

  monkeypatch.setattr(torch, 'topk', first_largest)
  # four experts: variances of the coarse ones are exact, so equal ones tie in both
  base_RxC, experts_NxRxC = weights_of(kind, 4)
  want = theirs('sce', base_RxC, experts_NxRxC, select_topk=select)
  got = ours(Sce(select), base_RxC, experts_NxRxC, None)
  np.testing.assert_allclose(got, want, atol=4 * TOLERANCE)


@pytest.mark.parametrize('kind', KINDS)
def test_nearswap(kind: str):
  base_RxC, experts_NxRxC = weights_of(kind, 1)
  for t in (1e-5, 0.01, 10.0):
    want = theirs('nearswap', base_RxC, experts_NxRxC, t=t)
    got = ours(NearSwap(t), base_RxC, experts_NxRxC, None)
    np.testing.assert_allclose(got, want, atol=TOLERANCE)
