"""TIES agrees with float64, also where magnitudes and signs tie."""

import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.ties import METHOD, Ties
from tests.methods import groups, scanned
from tests.oracles.ties import threshold, ties

N = 3
SHAPES = {'a': (12, 9), 'b': (1, 9), 'c': (5, 9)}  # one width: few programs
FLAVOURS = ('official', 'mergekit', 'peft')


def model(n: int = N, steps: int = 4) -> dict[str, np.ndarray]:
  """Multiples of a power of two, scaled by tensor: ties, zeros and exact cancellation."""
  rng = np.random.default_rng([n, steps])
  return {
    name: np.float32(2.0 ** -(10 + 2 * at)) * x.astype(np.float32)
    for at, (name, shape) in enumerate(SHAPES.items())
    for x in [rng.integers(-steps, steps + 1, (n, *shape))]
  }


def assert_agrees(params: Ties, tensors: dict[str, np.ndarray], weights=None):
  found = scanned.scan(params, tensors, weights=weights)
  got, stats = scanned.merge(params, tensors, weights=weights, found=found)
  want, masks = ties(
    tensors,
    flavour=params.flavour,
    keep=params.keep,
    scale=params.scale,
    reduce=params.reduce,
    weights=weights,
  )
  for name, update_RxC in got.items():
    # a few roundings of entries of at most 2^-8
    np.testing.assert_allclose(update_RxC, want[name], atol=2e-9, err_msg=name)
    kept = masks[name].mean((1, 2))
    np.testing.assert_allclose(stats[name]['kept'], kept, rtol=1e-6)
  return got, stats


@pytest.mark.parametrize('flavour', FLAVOURS)
@pytest.mark.parametrize('reduce', ['mean', 'sum'])
def test_agrees_with_the_oracle(flavour: str, reduce: str):
  params = Ties(flavour, 0.4, 0.7, reduce)
  _, stats = assert_agrees(params, model())
  # as RL updates do, these cancel exactly in many places
  assert any(s['sign_ties'] > 0 for s in stats.values())
  assert_agrees(params, model(), weights=[0.5, -2.0, 1.0])
  assert_agrees(params, model(), weights=[1.0, 0.0, 0.0])


@pytest.mark.parametrize('flavour', FLAVOURS)
@pytest.mark.parametrize('keep', [0, 0.01, 1])
def test_extreme_fractions(flavour: str, keep: float):
  got, _ = assert_agrees(Ties(flavour, keep), model(steps=1000))
  empty = {(0, 'mergekit'), (0, 'peft'), (0.01, 'peft')}  # int(0.01 * 9) = 0
  assert (not got['b'].any()) == (
    (keep, flavour) in empty | {(0, 'official'), (0.01, 'official')}
  )


@pytest.mark.parametrize('flavour', FLAVOURS)
def test_one_expert_is_trimmed(flavour: str):
  assert_agrees(Ties(flavour), model(1))


@pytest.mark.parametrize('sign', [1, -1])
def test_official_zero_sums_follow_the_majority_of_the_model(sign: int):
  tied = np.stack([np.full((1, 9), x, np.float32) for x in (2.0, -2.0)])
  more = sign * np.ones((2, 12, 9), np.float32)
  params = Ties(keep=1)
  got, stats = assert_agrees(params, {'tied': tied, 'more': more})
  np.testing.assert_array_equal(got['tied'], 2.0 * sign)
  assert stats['tied']['sign_ties'] == 1
  got, _ = assert_agrees(params, {'tied': tied})  # no majority: negative
  np.testing.assert_array_equal(got['tied'], -2.0)


@pytest.mark.parametrize('flavour', ['mergekit', 'peft'])
def test_zero_sums_are_positive(flavour: str):
  tied = np.stack([np.full((1, 9), x, np.float32) for x in (2.0, -2.0)])
  got, _ = assert_agrees(Ties(flavour, 1), {'tied': tied})
  np.testing.assert_array_equal(got['tied'], 2.0)


def test_weighted_opposites_cancel_exactly_in_compiled_code():
  x_RxC = groups.experts(1, 12, 9, 1.0)[0]
  opposites = {'a': np.stack([x_RxC, -x_RxC])}
  for flavour in FLAVOURS:
    params = Ties(flavour, 1)
    found = scanned.scan(params, opposites, weights=[0.7, 0.7])
    _, stats = scanned.merge(params, opposites, weights=[0.7, 0.7], found=found)
    assert stats['a']['sign_ties'] == 1


@pytest.mark.parametrize('steps', [1, 4, 1000])
def test_the_threshold_is_the_exact_order_statistic(steps: int):
  tensors = model(steps=steps)
  copies = {'c': 2}  # the official code leaves duplicates out
  counted = list(tensors.values())
  for keep in (0.0, 0.1, 0.5, 0.9, 1.0):
    found = scanned.scan(Ties(keep=keep), tensors, copies=copies)
    want = [threshold([x[i] for x in counted], keep) for i in range(N)]
    np.testing.assert_array_equal(found['bits_N'].view(np.float32), want)


def test_blocks_of_rows_change_nothing():
  params, tensors = Ties(), model()
  assert not METHOD.whole_matrix(params)
  assert METHOD.whole_matrix(Ties('mergekit'))
  whole = scanned.scan(params, tensors)
  for rows in (1, 5):
    cut = scanned.scan(params, tensors, rows=rows)
    assert cut.keys() == whole.keys()
    for key, value in whole.items():
      np.testing.assert_array_equal(cut[key], value)
  updates, _ = scanned.merge(params, tensors, found=whole)
  for rows in (5, 7):
    parts, _ = scanned.merge(params, tensors, rows=rows, found=whole)
    for name, update_RxC in updates.items():
      np.testing.assert_array_equal(parts[name], update_RxC)


def test_rows_of_padding_count_as_nothing():
  tensors = model()
  padded = {name: np.pad(x, ((0, 0), (0, 3), (0, 0))) for name, x in tensors.items()}
  for keep in (0.4, 0.95):  # threshold above zero, and zero
    want = scanned.scan(Ties(keep=keep), tensors)
    got = scanned.scan(Ties(keep=keep), padded, shapes=SHAPES)
    np.testing.assert_array_equal(got['bits_N'], want['bits_N'])


def test_bad_parameters():
  with pytest.raises(InputError) as error:
    Ties('paper', 20, float('nan'), 'max')
  assert error.value.problems == (
    "flavour: got 'paper', expected official | mergekit | peft",
    'keep: got 20, expected a number from 0 to 1',
    'scale: got nan, expected a finite number',
    "reduce: got 'max', expected mean | sum",
  )
