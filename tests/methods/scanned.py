"""A small model whose tensors go through a method's scans and merge in row blocks."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.methods.base import Context, TensorFacts
from resmerge_jax.methods.table import method_of
from tests.methods import groups

Model = Mapping[str, np.ndarray]  # name -> NxRxC


@functools.cache
def merging(params: Any) -> Any:
  """The program of a merge: update and stats."""

  def one(delta_NxRxC: jax.Array, context: Context) -> Any:
    update, stats = method_of(params).merge(
      groups.task_vectors(delta_NxRxC),
      None,
      context=context,
      family=None,
      params=params,
    )
    return groups.applied(update, delta_NxRxC), stats

  return groups.compiled(one)


@functools.cache
def keys(name: str, n: int) -> np.ndarray:
  """Keys of the experts for the tensor `name`, uint32 Nx2; those of fewer come first."""
  rng = np.random.default_rng(list(name.encode()))
  return rng.integers(0, 2**32, (n, 2), np.uint32)


def context(
  name: str,
  n: int,
  row_start: int = 0,
  weights: Any = None,
  found: Mapping[str, Any] | None = None,
) -> Context:
  return dataclasses.replace(
    groups.context(n, weights, found),
    keys_Nx2=jnp.asarray(keys(name, n)),
    row_start=jnp.int32(row_start),
  )


def scan(
  params: Any,
  model: Model,
  *,
  rows: int = 100,
  weights: Any = None,
  copies: Mapping[str, int] | None = None,
  shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Mapping[str, np.ndarray]:
  """What whole-model scans find, read in blocks of `rows` rows.

  `shapes`: those of the tensors, if padding was added.
  """
  copies = copies or {}
  found: dict[str, np.ndarray] = {}
  shapes = shapes or {name: x.shape[1:] for name, x in model.items()}
  facts = {
    name: TensorFacts(shapes[name], layer=0, n_layers=2, copies=copies.get(name, 1))
    for name in model
  }
  for at, step in enumerate(method_of(params).scans(params)):
    totals: dict[str, np.ndarray] = {}
    for name, x_NxRxC in model.items():
      for start in range(0, x_NxRxC.shape[1], rows):
        here = context(name, len(x_NxRxC), start, weights, found)
        sums = groups.measuring(params, at)(x_NxRxC[:, start : start + rows], here)
        for key, value in sums.items():
          times = copies.get(name, 1) if step.copies else 1
          part = times * groups.on_host(value)
          totals[key] = totals.get(key, 0) + part
    found |= step.finish({'': totals}, facts, params, {'': found})['']
  return found


def merge(
  params: Any,
  model: Model,
  *,
  rows: int = 100,
  weights: Any = None,
  found: Mapping[str, Any] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Updates, and the stats of each tensor's last block."""
  updates, stats = {}, {}
  for name, x_NxRxC in model.items():
    parts = []
    for start in range(0, x_NxRxC.shape[1], rows):
      here = context(name, len(x_NxRxC), start, weights, found)
      update_RxC, stats[name] = merging(params)(x_NxRxC[:, start : start + rows], here)
      parts.append(np.asarray(update_RxC))
    updates[name] = np.vstack(parts)
  return updates, stats
