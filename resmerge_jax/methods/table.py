"""The tables of methods and of post-processors: one explicit entry each."""

from collections.abc import Mapping
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
  return _of('method', METHODS, params)


def post_of(params: Any) -> Post:
  """The post-processor whose parameters these are."""
  return _of('post', POSTS, params)


def _of(kind: str, known: Mapping[str, Any], params: Any) -> Any:
  for entry in known.values():
    if type(params) is entry.params:
      return entry
  raise InputError(
    f'{kind}: got parameters of type {type(params).__name__}',
    fix=f'pass one of {", ".join(m.params.__name__ for m in known.values())}',
  )
