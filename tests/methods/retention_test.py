"""Retention agrees with float64, and keeps what its page says it keeps."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.errors import InputError
from resmerge_jax.methods.base import LowRank, TensorFacts
from resmerge_jax.methods.retention import BRANCHES, METHOD, Retention
from tests.methods import groups
from tests.methods.groups import COLS, ROWS
from tests.oracles.retention import retention

TAU = 0.4
# What the page promises, 1e-6 / tau; relative to the longest expert.
ATOL = 1e-6 / TAU


def groups_of(n: int) -> dict[str, np.ndarray]:
  found = {
    f'likeness {x}': groups.experts(n, ROWS, COLS, x, seed) for seed, x in
    enumerate((0.0, 0.3, 1.0, 3.0))
  }  # fmt: skip
  found['opposed'] = groups.experts(n, ROWS, COLS, 1.0, 5)
  found['opposed'][::2] *= -1
  sizes_N = np.float32(10.0) ** -np.arange(n, dtype=np.float32)
  found['short ones'] = sizes_N[:, None, None] * groups.experts(n, ROWS, COLS, 0.5, 6)
  found['a zero one'] = groups.experts(n, ROWS, COLS, 0.5, 7)
  found['a zero one'][0] = 0
  found['tiny'] = np.float32(1e-12) * groups.experts(n, ROWS, COLS, 1.0, 8)
  return found


def merge(delta_NxRxC: np.ndarray, **params) -> tuple[np.ndarray, dict]:
  stored = groups.task_vectors(jnp.asarray(delta_NxRxC, jnp.float32))
  return groups.merge_stored(Retention(**params), stored)


def directions(n: int) -> np.ndarray:
  """Orthonormal task vectors."""
  x_DxN = np.random.default_rng(n).standard_normal((ROWS * COLS, n))
  return np.float32(np.linalg.qr(x_DxN)[0].T.reshape(n, ROWS, COLS))


@pytest.mark.parametrize('n', [1, 2, 3, 5])
@pytest.mark.parametrize('params', [{}, {'tau': 0.1, 'rescale': True}])
def test_agrees_with_the_oracle(n: int, params: dict):
  for name, delta_NxRxC in groups_of(n).items():
    got, stats = merge(delta_NxRxC, **params)
    want, a_N = retention(delta_NxRxC, **params)
    tau = params.get('tau', TAU)
    size_N = np.linalg.norm(delta_NxRxC, axis=(1, 2))
    longest = max(size_N.max(), 1e-30)
    error = np.linalg.norm(got - want) / longest
    assert error <= ATOL * TAU / tau, name
    off_N = (np.asarray(stats['a']) - a_N) * size_N / longest
    assert np.abs(off_N).max() <= ATOL * TAU / tau, name
    assert stats['kkt'] <= 2e-6, name
    there = size_N > 0
    inside = ((a_N > 0) & (a_N < 1))[there].all()
    want_branch = 'zero' if not there.any() else 'inside' if inside else 'bounded'
    assert BRANCHES[stats['branch']] == want_branch, name
    assert (np.asarray(stats['a'])[~there] == 0).all()


def test_sixteen_experts_meet_the_conditions_of_the_minimum():
  for delta_NxRxC in groups_of(16).values():
    _, stats = merge(delta_NxRxC)
    assert stats['kkt'] <= 3e-6  # sums of 16 terms
    a_N = np.float64(stats['a'])
    flat_NxD = np.float64(delta_NxRxC.reshape(16, -1))
    size_N = np.linalg.norm(flat_NxD, axis=1)
    there = size_N > 0
    unit_NxD = flat_NxD[there] / size_N[there, None]
    b_N, most_N = ((x * size_N)[there] / size_N.max() for x in (a_N, np.ones(16)))
    slope_N = unit_NxD @ (unit_NxD.T @ b_N) + TAU * b_N - most_N
    moved_N = np.clip(b_N - slope_N, 0, most_N) - b_N
    assert np.abs(moved_N).max() <= 1e-5  # float32 cosines on top


@pytest.mark.parametrize('n', [1, 2, 3, 8])
def test_identical_experts_give_n_over_n_plus_tau_of_their_mean(n: int):
  one = directions(1)[0]
  got, stats = merge(np.stack([one] * n))
  np.testing.assert_allclose(stats['a'], [1 / (n + TAU)] * n, rtol=ATOL)
  np.testing.assert_allclose(got, n / (n + TAU) * one, atol=ATOL)
  longer, _ = merge(np.stack([one] * n), rescale=True)
  np.testing.assert_allclose(longer, n * (1 + TAU) / (n + TAU) * one, atol=2 * ATOL)


@pytest.mark.parametrize('n', [1, 2, 5])
def test_orthogonal_experts_give_one_over_one_plus_tau_of_their_sum(n: int):
  size_N = np.float32([3.0, 1e-3, 1.0, 30.0, 0.1])[:n, None, None]
  delta_NxRxC = size_N * directions(n)
  got, stats = merge(delta_NxRxC)
  # A short expert's coefficient feels the rounding of the longest.
  np.testing.assert_allclose(got, delta_NxRxC.sum(0) / (1 + TAU), atol=30 * ATOL)
  np.testing.assert_allclose(stats['retained'][0], 1 / (1 + TAU), rtol=1e-4)
  whole, _ = merge(delta_NxRxC, rescale=True)
  np.testing.assert_allclose(whole, delta_NxRxC.sum(0), atol=30 * ATOL)


def test_opposite_experts_cancel_at_their_bounds():
  one = directions(1)[0]
  got, stats = merge(np.stack([one, -one]))
  np.testing.assert_array_equal(stats['a'], 1.0)
  np.testing.assert_array_equal(got, 0.0)
  assert BRANCHES[stats['branch']] == 'bounded'
  got, stats = merge(np.stack([one, -0.2 * one]))
  np.testing.assert_allclose(stats['a'], [1.2 / (1 + TAU), 1.0], rtol=1e-5)


def test_what_is_retained():
  """1 - tau a_i inside, at most that at a_i = 1, at least 1 at a_i = 0."""
  kinds = set()
  for delta_NxRxC in groups_of(5).values():
    got, stats = merge(delta_NxRxC)
    a_N, kept_N = (np.asarray(stats[key]) for key in ('a', 'retained'))
    size_N = np.linalg.norm(delta_NxRxC, axis=(1, 2))
    off_N = 2e-5 * size_N.max() / np.maximum(size_N, 1e-30)  # float32 cosines
    for i in np.flatnonzero(size_N):
      own = np.vdot(got, delta_NxRxC[i]) / size_N[i] ** 2
      assert abs(kept_N[i] - own) <= off_N[i]
      kinds.add('0' if a_N[i] == 0 else '1' if a_N[i] == 1 else 'inside')
      assert kept_N[i] >= 1 - TAU * a_N[i] - off_N[i] or a_N[i] == 1
      assert kept_N[i] <= 1 - TAU * a_N[i] + off_N[i] or a_N[i] == 0
  assert kinds == {'0', '1', 'inside'}


def test_a_short_expert_that_a_long_one_serves_is_left_out():
  """Dropped once cos ||D_1|| / (1 + tau) >= ||D_2||."""
  x, y = directions(2)
  for size, left_out in ((0.1, True), (0.3, False)):
    short = np.float32(size) * (0.3 * x + np.sqrt(0.91) * y)
    _, stats = merge(np.stack([x, short]))
    assert (stats['a'][1] == 0) == left_out
    assert (stats['retained'][1] >= 1) == left_out


def test_copies_of_an_expert_count_as_one_of_less_tau():
  x, y = np.float64(groups.experts(2, ROWS, COLS, 0.3))
  _, stats = merge(np.stack([x, x, y]))
  G = np.array([[np.vdot(a, b) for b in (x, y)] for a in (x, y)])
  own = np.diag(G)
  both, other = np.linalg.solve(G + np.diag([TAU / 2, TAU] * own), own)
  np.testing.assert_allclose(stats['a'], [both / 2, both / 2, other], rtol=1e-5)


def test_all_zero_and_64_bit_types():
  got, stats = merge(np.zeros((3, ROWS, COLS)))
  np.testing.assert_array_equal(got, 0.0)
  assert (BRANCHES[stats['branch']], float(stats['kkt'])) == ('zero', 0.0)
  delta_NxRxC = groups.experts(3, ROWS, COLS, 0.3)
  want, _ = merge(delta_NxRxC)
  with jax.enable_x64(True):  # a post-processor may want them
    update, stats = groups.merge(Retention(), None, jnp.asarray(delta_NxRxC), None)
  assert {x.dtype for x in stats.values()} == {jnp.dtype('f4'), jnp.dtype('i4')}
  np.testing.assert_allclose(groups.applied(update, delta_NxRxC), want, atol=1e-6)


def test_the_update_is_a_combination_of_task_vectors():
  delta_NxRxC = jnp.asarray(groups.experts(3, ROWS, COLS, 0.3))
  update, _ = jax.eval_shape(
    lambda x: groups.merge(Retention(), None, x, None), delta_NxRxC
  )
  assert isinstance(update, LowRank)
  assert (update.a_N.shape, update.w_T.shape) == ((3,), (0,))


LAYERS = {'embed': -1, 'norm': -1, 'q.0': 0, 'k.0': 0, 'q.1': 1, 'k.1': 1}
MEMBERS = {
  'layer': [['embed'], ['norm'], ['q.0', 'k.0'], ['q.1', 'k.1']],
  'model': [list(LAYERS)],
}


def found(params: Retention, model: Mapping[str, np.ndarray]) -> Mapping:
  (scan,) = METHOD.scans(params)
  totals = {}
  for name, x_NxRxC in model.items():
    sums = scan.measure(
      groups.task_vectors(jnp.asarray(x_NxRxC)),
      context=groups.context(3),
      params=params,
    )
    totals[name] = {key: groups.on_host(value) for key, value in sums.items()}
  facts = {name: TensorFacts((ROWS, COLS), LAYERS[name], 2) for name in model}
  return scan.finish(totals, facts, params, {})


@pytest.mark.parametrize('group', MEMBERS)
def test_groups_share_their_coefficients(group: str):
  model = {
    name: np.float32(1.5) ** i * groups.experts(3, ROWS, COLS, 0.4 * i, seed=i)
    for i, name in enumerate(LAYERS)
  }
  params = Retention(group=group, rescale=True)
  assert not METHOD.whole_matrix(params)
  here = found(params, model)
  for names in MEMBERS[group]:
    want, a_N = retention(
      np.stack([model[name] for name in names], 1), TAU, rescale=True
    )
    for name, want_RxC in zip(names, want, strict=True):
      stored = groups.task_vectors(jnp.asarray(model[name]))
      got, stats = groups.merge_stored(params, stored, found=here[name])
      np.testing.assert_allclose(stats['a'], a_N, atol=ATOL)
      np.testing.assert_allclose(got, want_RxC, atol=2e-5)


def test_a_tensor_of_its_own_needs_no_scan():
  assert METHOD.whole_matrix(Retention())
  assert METHOD.scans(Retention()) == ()


@pytest.mark.parametrize(
  ('wrong', 'text'),
  [
    ({'tau': 0.0}, 'tau: got 0.0, expected a finite number, 0.01 or more'),
    ({'tau': float('inf')}, 'tau: got inf, expected a finite number, 0.01 or more'),
    ({'group': 'block'}, "group: got 'block', expected layer | tensor | model"),
    ({'rescale': 1.4}, 'rescale: got 1.4, expected True | False'),
  ],
)
def test_parameters_out_of_range(wrong: dict, text: str):
  with pytest.raises(InputError) as error:
    Retention(**wrong)
  assert error.value.what == 'retention: parameters out of range'
  assert list(error.value.problems) == [text]


def test_the_page_runs():
  page = pathlib.Path(__file__).parents[2] / 'docs/retention.md'
  names: dict[str, Any] = {}
  for snippet in re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL):
    exec(snippet, names)
  record = names['merged'].records[0]
  for key in ('a', 'retained'):  # cosines of 4096 random numbers: 0.016
    np.testing.assert_allclose(record[key], [1 / (1 + TAU)] * 2, atol=0.05)
  assert (record['branch'], record['kkt'] < 1e-6) == ('inside', True)


def test_for_a_model_it_is_task_arithmetic_with_weights():
  x_TxNxRxC = np.stack([groups.experts(3, ROWS, COLS, 0.3, seed) for seed in (0, 1)])
  base = {f'model.layers.{t}.mlp.up_proj.weight': 0 * x_TxNxRxC[t, 0] for t in (0, 1)}
  experts = [
    dict(zip(base, x_TxRxC, strict=True)) for x_TxRxC in x_TxNxRxC.swapaxes(0, 1)
  ]

  def merged(method: str, **more: Any) -> resmerge_jax.MergeResult:
    return resmerge_jax.merge_state_dicts(base, experts, method=method, **more)

  got = merged('retention', params={'group': 'model'})
  a_N = got.records[0]['a']
  assert got.records[1]['a'] == a_N
  want = merged('task_arithmetic', params={'reduce': 'sum'}, weights=a_N)
  for name in base:
    np.testing.assert_allclose(got.tensors[name], want.tensors[name], atol=1e-6)
