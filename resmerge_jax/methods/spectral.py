"""What the methods that replace whole spectra share: parameters, branches, stats."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from resmerge_jax.methods.base import Stats

# ill_posed: directions are missing (rank-deficient or unchanged experts) or repeated
# (identical experts), so that the equations leave the result open. We give what is
# missing no weight of its own; it then depends on the experts alone.
BRANCHES = ('ok', 'ill_posed', 'zero')
OK, ILL_POSED, ZERO = range(3)


def checks(params: Any) -> dict[str, tuple[bool, str]]:
  """For check_params: the fields that these methods have in common."""
  return {
    'scale': (math.isfinite(params.scale), 'a finite number'),
    'scope': (params.scope in ('matrices', 'hidden'), "'matrices' or 'hidden'"),
  }


def outcome(size: jax.Array, complete: jax.Array, error: jax.Array) -> Stats:
  """Branch, and the estimated relative error. `size` is 0 for an update of zero."""
  branch = jnp.where(complete, OK, ILL_POSED)
  return {
    'branch': jnp.int32(jnp.where(size > 0, branch, ZERO)),
    'error': jnp.float32(error),
  }
