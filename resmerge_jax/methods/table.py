"""The tables of methods and of post-processors: one explicit entry each."""

from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.methods import resmerge, task_arithmetic
from resmerge_jax.methods.base import Method, Post

METHODS: dict[str, Method] = {
  method.name: method for method in (resmerge.METHOD, task_arithmetic.METHOD)
}

POSTS: dict[str, Post] = {}


def method_of(params: Any) -> Method:
  """The method whose parameters these are."""
  for method in METHODS.values():
    if isinstance(params, method.params):
      return method
  raise InputError(
    f'method: got parameters of type {type(params).__name__}',
    fix=f'pass one of {", ".join(m.params.__name__ for m in METHODS.values())}',
  )
