"""The tables of methods and of post-processors: one explicit entry each."""

from collections.abc import Mapping, Sequence
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.methods import (
  breadcrumbs,
  components,
  dare,
  della,
  iso,
  iso_cts,
  layerwise,
  linear,
  model_stock,
  nearswap,
  ram,
  rank_mask,
  resmerge,
  retention,
  sce,
  slerp,
  spherical_means,
  star,
  svc,
  task_arithmetic,
  ties,
  tsv,
  warp,
)
from resmerge_jax.methods.base import Method, Post

METHODS: dict[str, Method] = {
  method.name: method
  for method in (
    resmerge.METHOD,
    task_arithmetic.METHOD,
    linear.METHOD,
    ties.METHOD,
    dare.METHOD,
    dare.METHOD_TIES,
    della.METHOD,
    breadcrumbs.METHOD,
    sce.METHOD,
    nearswap.METHOD,
    ram.METHOD,
    slerp.SLERP,
    slerp.NUSLERP,
    spherical_means.MULTISLERP,
    spherical_means.KARCHER,
    model_stock.METHOD,
    warp.METHOD,
    retention.METHOD,
    tsv.METHOD,
    iso.METHOD,
    iso_cts.METHOD,
    star.METHOD,
    rank_mask.METHOD,
    components.HEAD_ONLY,
    components.RESIDUAL_ONLY,
  )
}

POSTS: dict[str, Post] = {
  post.name: post for post in (layerwise.LITI, layerwise.LINES, layerwise.HMA, svc.POST)
}


def method_of(params: Any) -> Method:
  """The method whose parameters these are."""
  return _of('method', METHODS, params)


def post_of(params: Any) -> Post:
  """The post-processor whose parameters these are."""
  return _of('post', POSTS, params)


def n_scans(params: Any, posts: Sequence[Any]) -> int:
  """How often a tensor is read before it is merged."""
  scans = len(method_of(params).scans(params))
  return scans + sum(len(post_of(post).scans(post)) for post in posts)


def needs_whole_matrix(params: Any, posts: Sequence[Any]) -> bool:
  """Whether a row of the result depends on other rows."""
  return method_of(params).whole_matrix(params) or any(
    post_of(post).whole_matrix for post in posts
  )


def needs_float64(params: Any, posts: Sequence[Any]) -> bool:
  """Whether the program needs 64-bit types, which accelerators lack."""
  return method_of(params).float64 or any(post_of(post).float64 for post in posts)


def _of(kind: str, known: Mapping[str, Any], params: Any) -> Any:
  for entry in known.values():
    if type(params) is entry.params:
      return entry
  raise InputError(
    f'{kind}: got parameters of type {type(params).__name__}',
    fix=f'pass one of {", ".join(m.params.__name__ for m in known.values())}',
  )
