"""LITI, LiNeS and HMA scale an update by the number that their papers give."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.methods.base import Dense, LowRank, apply_update
from resmerge_jax.methods.layerwise import Hma, Lines, Liti
from resmerge_jax.methods.table import POSTS
from tests.methods import groups

DELTA = groups.task_vectors(jnp.asarray(groups.experts(2, 4, 3, 0.5)))
LOW_RANK = LowRank(
  jnp.array([0.5, -2.0]), jnp.ones(1), jnp.ones((1, 4)), jnp.arange(3.0)[None]
)
POST_OF = {post.params: post for post in POSTS.values()}


def factor(params: Any, layer: int, n_layers: int) -> float:
  """The number that turns the update into the one that comes out."""
  context = dataclasses.replace(
    groups.context(2), layer=jnp.int32(layer), n_layers=jnp.int32(n_layers)
  )
  post = POST_OF[type(params)]
  update, stats = post.apply(
    Dense(jnp.ones((4, 3))), DELTA, context=context, params=params
  )
  got = np.unique(apply_update(update, DELTA))
  assert got.shape == (1,)
  assert len(stats) == 1
  assert all(np.isfinite(value) for value in stats.values())
  return float(got[0])


@pytest.mark.parametrize('params', [Liti(0.3), Lines(0.25, 0.5), Hma((0.2, 0.4))])
def test_both_forms_of_an_update_are_scaled(params: Any):
  post = POST_OF[type(params)]
  update, _ = post.apply(LOW_RANK, DELTA, context=groups.context(2), params=params)
  want = factor(params, 0, 2) * np.float64(apply_update(LOW_RANK, DELTA))
  np.testing.assert_allclose(apply_update(update, DELTA), want, rtol=1e-6)
  assert not post.whole_matrix


def test_liti():
  assert factor(Liti(), 3, 7) == 1.0
  assert factor(Liti(0.25), -1, 7) == 0.25


@pytest.mark.parametrize('n_layers', [2, 5, 26])
def test_lines_rises_from_alpha_to_alpha_plus_beta(n_layers: int):
  params = Lines(alpha=0.25, beta=0.5)
  for layer in (0, 1, n_layers - 1):
    want = 0.25 + 0.5 * layer / (n_layers - 1)
    assert factor(params, layer, n_layers) == pytest.approx(want, rel=1e-7)
  assert factor(params, -1, n_layers) == 0.25


def test_lines_of_one_layer():
  assert factor(Lines(alpha=0.25, beta=0.5), 0, 1) == 0.75
  assert factor(Lines(alpha=0.25, beta=0.5), -1, 1) == 0.25
  assert factor(Lines(alpha=0.25, beta=0.5), -1, 0) == 0.25  # a model without layers


def blocks(n_layers: int, k: int) -> list[int]:
  """How many layers each block has, from weights that tell the blocks apart."""
  weights = tuple(i / 64 for i in range(k))
  of = [round(64 * (1 - factor(Hma(weights), i, n_layers))) for i in range(n_layers)]
  assert of == sorted(of)
  return [of.count(i) for i in range(k)]


def test_hma_blocks():
  assert blocks(26, 3) == [8, 9, 9]  # the paper's: 1-8, 9-17, 18-26
  assert blocks(6, 3) == [2, 2, 2]
  assert blocks(5, 5) == [1] * 5
  assert blocks(2, 3) == [0, 1, 1]
  assert blocks(4, 1) == [4]


def test_hma_outside_the_layers():
  assert factor(Hma((0.0, 0.25, 0.5)), -1, 6) == 0.75
  assert factor(Hma([0.0, 1.0]), -1, 0) == 0.5
  assert factor(Hma((1,)), 0, 6) == 0.0  # the base alone


@pytest.mark.parametrize(
  ('make', 'field'),
  [
    (lambda: Liti(-1.0), 'eta'),
    (lambda: Liti(np.inf), 'eta'),
    (lambda: Lines(alpha=-0.1, beta=1.0), 'alpha'),
    (lambda: Lines(alpha=0.5), 'beta'),
    (lambda: Lines(alpha=0.5, beta=-0.5), 'beta'),
    (lambda: Hma(), 'base_weight'),
    (lambda: Hma((0.2, 1.2)), 'base_weight'),
    (lambda: Hma(0.2), 'base_weight'),
  ],
)
def test_parameters_out_of_range(make: Any, field: str):
  with pytest.raises(InputError, match=f'{field}: got'):
    make()
