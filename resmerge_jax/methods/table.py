"""The tables of methods and of post-processors: one explicit entry each."""

from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.methods import (
  layerwise,
  model_stock,
  ram,
  resmerge,
  slerp,
  spherical_means,
  task_arithmetic,
  warp,
)
from resmerge_jax.methods.base import Method, Post

METHODS: dict[str, Method] = {
  method.name: method
  for method in (
    resmerge.METHOD,
    task_arithmetic.METHOD,
    ram.METHOD,
    slerp.SLERP,
    slerp.NUSLERP,
    spherical_means.MULTISLERP,
    spherical_means.KARCHER,
    model_stock.METHOD,
    warp.METHOD,
  )
}

POSTS: dict[str, Post] = {
  post.name: post for post in (layerwise.LITI, layerwise.LINES, layerwise.HMA)
}


def method_of(params: Any) -> Method:
  """The method whose parameters these are."""
  for method in METHODS.values():
    if isinstance(params, method.params):
      return method
  raise InputError(
    f'method: got parameters of type {type(params).__name__}',
    fix=f'pass one of {", ".join(m.params.__name__ for m in METHODS.values())}',
  )
