"""The slow reference against the float64 oracle; cli/bench_test.py: against ours."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from resmerge_jax.bench import reference
from resmerge_jax.synthetic import make_group
from tests import groups
from tests.oracles import resmerge as oracle


@pytest.mark.parametrize('family', ['attention', 'ffn'])
@pytest.mark.parametrize('n_experts', [1, 2, 3])
def test_the_equations_are_the_papers(family, n_experts):
  rng = np.random.default_rng(0)
  shared = rng.normal(size=(40, 1)) * rng.normal(size=(1, 24))
  deltas = [
    (shared + rng.normal(size=(40, 24))).astype(np.float32) for _ in range(n_experts)
  ]
  scale = oracle.FAMILY_SCALES['paper'][family]

  got = reference.resmerge(deltas, [*map(reference.head_of, deltas)], scale)

  want, _ = oracle.resmerge(deltas, family=family)
  assert got.dtype == np.float32
  assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)


def test_zero_updates_change_nothing():
  zero = np.zeros((6, 4), np.float32)
  assert not reference.head_of(zero).any()
  assert not reference.resmerge([zero, zero], [zero, zero], 1.0).any()


def test_merges_the_tensors_of_the_first_layers(tmp_path):
  base, experts = make_group(tmp_path / 'group', 'tiny', n_experts=2, layers=3)
  file = tmp_path / 'new/reference.safetensors'

  told = reference.run(str(base), list(map(str, experts)), 2, str(file))

  assert told['matrices'] == 14
  assert 0 < told['svd'] < told['total']
  stored = groups.load(base)
  wanted = {name for name in stored if '.layers.0.' in name or '.layers.1.' in name}
  merged = load_file(file)
  assert set(merged) == wanted
  for name, value in merged.items():
    assert (value.dtype, value.shape) == (stored[name].dtype, stored[name].shape)
    assert np.any(value != stored[name])
