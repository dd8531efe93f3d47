"""What methods declare of the form of their updates."""

import jax
import jax.numpy as jnp
import pytest

from resmerge_jax.methods.base import Dense, LowRank, apply_update
from resmerge_jax.methods.table import POSTS, method_of
from tests.methods import groups
from tests.methods.battery_test import SETTINGS, general, given
from tests.methods.float64_runs import precision_of


@pytest.mark.parametrize('name', SETTINGS)
def test_terms_are_those_of_the_update(name: str):
  params = SETTINGS[name]
  method, delta_NxRxC = method_of(params), general(name)
  stored, head, found = given(name, delta_NxRxC)
  with precision_of(params):
    update, _ = jax.eval_shape(
      lambda *x: groups.merge(params, 'attention', x[0], x[1], found=x[2]),
      stored, head, found,
    )  # fmt: skip
  k = method.head_rank(params)
  expected = method.terms(params, len(delta_NxRxC), k)
  assert (None if isinstance(update, Dense) else len(update.w_T)) == expected


@pytest.mark.parametrize('name', POSTS)
def test_posts_keep_what_they_say(name: str):
  given = {'lines': {'alpha': 0.5, 'beta': 0.5}, 'hma': {'base_weight': (0.5,)}}
  post = POSTS[name]
  params = post.params(**given.get(name, {}))
  delta_NxRxC = groups.task_vectors(jnp.ones((2, 3, 4)))
  before = LowRank(jnp.ones(2), jnp.ones(1), jnp.ones((1, 3)), jnp.ones((1, 4)))

  def apply():
    context = groups.context(2, None, None)
    return post.apply(before, delta_NxRxC, context=context, params=params)[0]

  with jax.enable_x64(post.float64):
    after = jax.eval_shape(apply)
  assert isinstance(after, LowRank) == post.keeps_form
  if post.keeps_form:
    factor = apply().a_N[0]  # all of it is scaled alike, and its vectors stay
    got, want = (apply_update(x, delta_NxRxC) for x in (apply(), before))
    assert jnp.allclose(got, factor * want, rtol=1e-6)  # float32
