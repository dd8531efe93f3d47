"""The update of one matrix: of its method, or from what a recipe holds of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.task_vectors import Products, TaskVectors
from resmerge_jax.methods.base import (
  Context,
  LowRank,
  Stats,
  Update,
  combination,
  rank_one_terms,
)
from resmerge_jax.methods.table import method_of, post_of
from resmerge_jax.pipeline.kernel_spec import KernelSpec

FROM_RECIPE = ('replay', 'refit')


class Updated(NamedTuple):
  """The update of a matrix, and what was measured for it if that is kept or lent."""

  update: Update
  stats: Stats
  measured: dict[str, jax.Array]


def updated(
  spec: KernelSpec, delta_NxRxC: Any, head: Head | None, context: Context
) -> Updated:
  """The update after all post-processors.

  `delta_NxRxC` are task vectors, or Products where the method takes them.
  """
  if spec.recipe == 'replay':  # it was recorded after them
    return Updated(_replayed(context.found, delta_NxRxC), {}, {})
  if spec.update_given:
    assert head is not None
    a_N, w_T = context.found['a_N'], context.found['w_T']
    return Updated(LowRank(a_N, w_T, *rank_one_terms(head)), {}, {})
  method = method_of(spec.params)
  measured: dict[str, jax.Array] = {}
  update: Update
  if method.refit is not None and (spec.recipe or spec.lends):
    if spec.recipe == 'refit':
      u_TxR, v_TxC = _vectors(context.found, delta_NxRxC)
      measured = {key: context.found[key] for key in method.refit.shapes(1)}
    else:
      assert head is not None
      u_TxR, v_TxC = rank_one_terms(head)
      measured = method.refit.measure(delta_NxRxC, head, params=spec.params)
    update, stats = method.refit.update(
      measured, u_TxR, v_TxC, family=spec.family, params=spec.params
    )
  else:
    update, stats = method.merge(
      delta_NxRxC, head, context=context, family=spec.family, params=spec.params
    )
  for params in spec.post:
    post = post_of(params)
    update, more = post.apply(update, delta_NxRxC, context=context, params=params)
    stats |= {f'{post.name}_{key}': value for key, value in more.items()}
  return Updated(update, stats, measured)


def to_recipe(one: Updated) -> dict[str, jax.Array]:
  """All arrays by name; without rank-one terms of the update its coefficients alone."""
  assert isinstance(one.update, LowRank)
  fields = one.update._asdict()
  return (fields if len(one.update.w_T) else {'a_N': fields['a_N']}) | one.measured


def _replayed(
  found: Mapping[str, jax.Array], delta_NxRxC: TaskVectors | Products
) -> LowRank:
  if 'w_T' not in found:
    return combination(found['a_N'], delta_NxRxC)
  return LowRank(found['a_N'], found['w_T'], *_vectors(found, delta_NxRxC))


def _vectors(
  found: Mapping[str, jax.Array], delta_NxRxC: TaskVectors | Products
) -> tuple[jax.Array, jax.Array]:
  """u_TxR with zeros for the rows of padding, and v_TxC."""
  u_TxR = found['u_TxR']
  padding = delta_NxRxC.shape[0] - u_TxR.shape[1]
  return jnp.pad(u_TxR, ((0, 0), (0, padding))), found['v_TxC']
