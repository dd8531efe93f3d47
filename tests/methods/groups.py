"""Experts of one small matrix with their exact heads, for tests of merge functions."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.exact import exact_head
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import (
  Context,
  TensorFacts,
  Update,
  apply_update,
)
from resmerge_jax.methods.resmerge_params import CHOICES
from resmerge_jax.methods.table import method_of
from resmerge_jax.types import Family

ROWS, COLS = 12, 9
Found = Mapping[str, np.ndarray | jax.Array]  # as in Context
VARIANTS = CHOICES['variant']

# These programs are tiny: compiling them fast is all that counts.
FAST_COMPILE: dict[str, str | bool | int] = {
  'xla_cpu_use_fusion_emitters': False,
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}
compiled = functools.partial(jax.jit, compiler_options=FAST_COMPILE)


def experts(n: int, rows: int, cols: int, likeness: float, seed: int = 0) -> np.ndarray:
  """NxRxC float32 of norms 0.5 to 1.5; `likeness` sets how far they agree."""
  rng = np.random.default_rng([seed, n, rows, cols])
  common_RxC = np.outer(rng.standard_normal(rows), rng.standard_normal(cols))
  common_RxC += rng.standard_normal((rows, cols))
  delta_NxRxC = likeness * common_RxC + rng.standard_normal((n, rows, cols))
  norm_N = np.linalg.norm(delta_NxRxC, axis=(1, 2)) / rng.uniform(0.5, 1.5, n)
  return (delta_NxRxC / norm_N[:, None, None]).astype(np.float32)


def exact_heads(delta_xNxRxC: np.ndarray, k: int) -> Head:
  """Heads with the leading axes of `delta`, rounded to float32."""
  *lead, rows, cols = delta_xNxRxC.shape
  found = [exact_head(d, k) for d in delta_xNxRxC.reshape(-1, rows, cols)]
  stacked = [
    np.stack([np.float32(x) for x in field]) for field in zip(*found, strict=True)
  ]
  fields = [x.reshape(*lead, *x.shape[1:]) for x in stacked]
  return Head(*fields, ritz_MxC=fields[1])


def task_vectors(delta_NxRxC: jax.Array) -> TaskVectors:
  """Experts of a base of zeros."""
  return TaskVectors(jnp.zeros_like(delta_NxRxC[0]), delta_NxRxC)


def applied(update: Update, delta_NxRxC: jax.Array) -> jax.Array:
  return apply_update(update, task_vectors(delta_NxRxC))


def merge(
  params: Any,
  family: Family | None,
  delta_NxRxC: jax.Array,
  head: Head | None,
  weights_N: Sequence[float] | None = None,
  found: Found | None = None,
) -> tuple[Update, dict[str, jax.Array]]:
  n = len(delta_NxRxC)
  return method_of(params).merge(
    task_vectors(delta_NxRxC),
    head,
    context=context(n, weights_N, found),
    family=family,
    params=params,
  )


def context(
  n: int, weights_N: Sequence[float] | None = None, found: Found | None = None
) -> Context:
  """That of the first rows of a tensor in the first of two layers."""
  weights = np.ones(n) if weights_N is None else np.asarray(weights_N)
  return Context(
    weights_N=jnp.asarray(weights, jnp.float32),
    keys_Nx2=jnp.arange(2 * n, dtype=jnp.uint32).reshape(n, 2),
    row_start=jnp.int32(0),
    layer=jnp.int32(0),
    n_layers=jnp.int32(2),
    found=found or {},
  )


@functools.cache
def program(params: Any) -> Any:
  """The method on stored weights and a context: (update as a matrix, stats)."""

  def one(stored: TaskVectors, context: Context) -> Any:
    update, stats = method_of(params).merge(
      stored, None, context=context, family=None, params=params
    )
    return apply_update(update, stored), stats

  return compiled(one)


def merge_stored(
  params: Any,
  stored: TaskVectors,
  weights_N: Sequence[float] | None = None,
  found: Found | None = None,
) -> tuple[np.ndarray, dict[str, jax.Array]]:
  """Update, as float64, and stats of a method that wants no heads."""
  update, stats = program(params)(stored, context(len(stored), weights_N, found))
  return np.float64(update), stats


@functools.cache
def measuring(params: Any, at: int) -> Any:
  """The program of a scan."""
  measure = method_of(params).scans(params)[at].measure
  return compiled(
    lambda delta_NxRxC, context: measure(
      task_vectors(delta_NxRxC), context=context, params=params
    )
  )


def found(params: Any, delta_NxRxC: np.ndarray) -> Found:
  """What the method's scans find in a model of this one matrix."""
  result: Found = {}
  n, *shape = delta_NxRxC.shape
  for at, scan in enumerate(method_of(params).scans(params)):
    sums = measuring(params, at)(delta_NxRxC, context(n, found=result))
    totals = {'' if scan.whole_model else 'x': {k: on_host(v) for k, v in sums.items()}}
    facts = {'x': TensorFacts(tuple(shape), layer=0, n_layers=2)}
    by_name = scan.finish(totals, facts, params, {'': result})
    result |= {**by_name.get('', {}), **by_name.get('x', {})}
  return result


def on_host(total: jax.Array) -> np.ndarray:
  """A sum as it goes on adding up outside the device."""
  return np.asarray(total, np.float64 if total.dtype == jnp.float32 else np.int64)


def merge_all(
  settings: Sequence[tuple[Any, Family | None]],
) -> Callable[[np.ndarray, Head], list[tuple[jax.Array, dict[str, jax.Array]]]]:
  """One program: for each setting the updates and stats of a batch BxNxRxC."""

  def one(
    params: Any, family: Family | None, delta_NxRxC: jax.Array, head: Head
  ) -> Any:
    update, stats = merge(params, family, delta_NxRxC, head)
    return applied(update, delta_NxRxC), stats

  def all_of(delta_BxNxRxC: jax.Array, head: Head) -> Any:
    return [
      jax.vmap(functools.partial(one, *setting))(delta_BxNxRxC, head)
      for setting in settings
    ]

  return compiled(all_of)


def merge_one(params: Any, family: Family | None) -> Callable[..., tuple]:
  """A program that merges one matrix: (update, stats)."""
  program = merge_all([(params, family)])

  def call(delta_NxRxC: np.ndarray, head: Head) -> tuple:
    (update_B, stats_B), *_ = program(
      delta_NxRxC[None], jax.tree.map(lambda x: x[None], head)
    )
    return update_B[0], {key: value[0] for key, value in stats_B.items()}

  return call
