"""WARP agrees with float64, whatever shares an angle."""

from collections.abc import Mapping

import jax
import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.sphere import BRANCHES
from resmerge_jax.methods.base import TensorFacts
from resmerge_jax.methods.warp import METHOD, Warp
from tests.methods import groups
from tests.oracles import sphere as oracle

LAYERS = {'embed': -1, 'norm': -1, 'q.0': 0, 'k.0': 0, 'q.1': 1, 'k.1': 1}
GROUPS = {
  'layer': [['embed'], ['norm'], ['q.0', 'k.0'], ['q.1', 'k.1']],
  'tensor': [[name] for name in LAYERS],
  'model': [list(LAYERS)],
}
Model = Mapping[str, np.ndarray]


def model(n: int) -> dict[str, np.ndarray]:
  """Tensors of very different likeness and size."""
  return {
    name: np.float32(2.0**i)
    * groups.experts(n, groups.ROWS, groups.COLS, 0.4 * i, seed=i)
    for i, name in enumerate(LAYERS)
  }


def found(params: Warp, tensors: Model) -> Mapping[str, groups.Found]:
  """Each tensor measured in two blocks of rows, as the host adds them up."""
  (scan,) = METHOD.scans(params)
  assert not scan.whole_model

  @groups.compiled
  def measured(x_NxRxC: jax.Array) -> dict[str, jax.Array]:
    context = groups.context(len(x_NxRxC))
    return scan.measure(groups.task_vectors(x_NxRxC), context=context, params=params)

  totals = {}
  for name, x_NxRxC in tensors.items():
    blocks = [measured(x_NxRxC[:, rows]) for rows in (slice(6), slice(6, None))]
    grams = [groups.on_host(block['gram_NxN']) for block in blocks]
    totals[name] = {'gram_NxN': grams[0] + grams[1]}
  facts = {
    name: TensorFacts(x.shape[1:], LAYERS[name], 2, copies=1 + (name == 'embed'))
    for name, x in tensors.items()
  }
  return scan.finish(totals, facts, params)


def merged(params: Warp, tensors: Model) -> dict[str, tuple[np.ndarray, dict]]:
  by_name = {} if params.group == 'tensor' else found(params, tensors)
  return {
    name: groups.merge_stored(params, groups.task_vectors(x), found=by_name.get(name))
    for name, x in tensors.items()
  }


@pytest.mark.parametrize('group', GROUPS)
@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_agrees_with_the_oracle(group: str, n: int):
  tensors = model(n)
  want = oracle.warp(tensors, GROUPS[group])
  for name, (got, stats) in merged(Warp(group=group), tensors).items():
    # Norms from 0.5 to 50; sums of N float32 terms.
    np.testing.assert_allclose(got, want[name], atol=2e-6 * np.abs(want[name]).max())
    assert BRANCHES[stats['branch']] == 'slerp'
    assert stats['cos'].shape == (n - 1,)


def test_groups_have_angles_of_their_own():
  tensors = model(2)
  angles = {
    group: {
      float(stats['cos'][0]) for _, stats in merged(Warp(group), tensors).values()
    }
    for group in GROUPS
  }
  assert {group: len(of) for group, of in angles.items()} == {
    'layer': 4, 'tensor': 6, 'model': 1
  }  # fmt: skip


def test_eta_goes_back_to_the_base():
  tensors = model(3)
  whole, part, none = (merged(Warp(eta=eta), tensors) for eta in (1.0, 0.3, 0.0))
  for name in tensors:
    np.testing.assert_allclose(
      part[name][0], 0.3 * whole[name][0], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(none[name][0], 0.0)


def test_order_matters_from_three_experts_on():
  """By the paper's design, and little where angles are alike."""
  for n, alike in ((2, True), (3, False)):
    tensors = model(n)
    forth = merged(Warp(), tensors)
    back = merged(Warp(), {name: x[::-1].copy() for name, x in tensors.items()})
    gaps = [
      np.abs(forth[name][0] - back[name][0]).max() / np.abs(forth[name][0]).max()
      for name in tensors
    ]
    assert (max(gaps) < 1e-6) == alike
    assert max(gaps) < 0.5


@pytest.mark.parametrize('group', ['layer', 'tensor'])
@pytest.mark.parametrize(
  ('factors', 'weight', 'branch'),
  [
    ([1, 1], [0.5, 0.5], 'lerp'),
    ([1, 0], [0.5, 0.5], 'lerp'),
    ([1, -1], [0.5, 0.5], 'opposite'),
    ([0, 0, 0], [1 / 3] * 3, 'lerp'),
    ([1, 1, 1], [1 / 3] * 3, 'lerp'),
  ],
)
def test_edges(group: str, factors: list, weight: list, branch: str):
  one = groups.experts(1, groups.ROWS, groups.COLS, 0.0)[0]
  delta_NxRxC = np.stack([np.float32(factor) * one for factor in factors])
  got, stats = merged(Warp(group=group), {'embed': delta_NxRxC})['embed']
  assert BRANCHES[stats['branch']] == branch
  np.testing.assert_allclose(stats['a'], weight, rtol=1e-6)
  np.testing.assert_allclose(got, np.tensordot(weight, delta_NxRxC, 1), atol=1e-6)


def test_only_a_tensor_of_its_own_needs_whole_matrices():
  assert METHOD.whole_matrix(Warp(group='tensor'))
  assert METHOD.scans(Warp(group='tensor')) == ()
  assert not METHOD.whole_matrix(Warp())


@pytest.mark.parametrize('wrong', [{'group': 'block'}, {'eta': -0.1}])
def test_parameters_out_of_range(wrong: dict):
  with pytest.raises(InputError, match=next(iter(wrong))):
    Warp(**wrong)
