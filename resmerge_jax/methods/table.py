"""The tables of methods and of post-processors: one explicit entry each."""

from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.methods import (
  components,
  iso,
  iso_cts,
  rank_mask,
  resmerge,
  star,
  svc,
  task_arithmetic,
  tsv,
)
from resmerge_jax.methods.base import Method, Post

METHODS: dict[str, Method] = {
  method.name: method
  for method in (
    resmerge.METHOD,
    task_arithmetic.METHOD,
    tsv.METHOD,
    iso.METHOD,
    iso_cts.METHOD,
    star.METHOD,
    rank_mask.METHOD,
    components.HEAD_ONLY,
    components.RESIDUAL_ONLY,
  )
}

POSTS: dict[str, Post] = {post.name: post for post in (svc.POST,)}


def method_of(params: Any) -> Method:
  """The method whose parameters these are."""
  for method in METHODS.values():
    if isinstance(params, method.params):
      return method
  raise InputError(
    f'method: got parameters of type {type(params).__name__}',
    fix=f'pass one of {", ".join(m.params.__name__ for m in METHODS.values())}',
  )
