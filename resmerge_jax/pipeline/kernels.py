"""The compiled step: stored weights of a layer stack in, merged weights and stats out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.gram import sums
from resmerge_jax.linalg.krylov import Head, top_k
from resmerge_jax.methods.base import apply_update
from resmerge_jax.methods.table import method_of
from resmerge_jax.sharding import (
  layer_sharding,
  mesh_for,
  padded,
  replicated,
  stack_sharding,
)
from resmerge_jax.types import DTYPES, Family


@dataclasses.dataclass(frozen=True)
class KernelSpec:
  """Everything a compiled step depends on; equal specs share one program.

  `layers` and `rows` are a step's shape before padding. `head_given`: the heads come
  as an argument (exact ones, from the host) instead of being computed.
  """

  params: Any
  family: Family | None
  layers: int
  rows: int
  cols: int
  dtypes: tuple[str, ...]
  out_dtype: str
  seed: int = 0
  head_given: bool = False

  def padded_shape(self, devices: Sequence[jax.Device]) -> tuple[int, int, int]:
    """LxRxC of the arrays the compiled step takes on these devices."""
    mesh = mesh_for(self.layers, self.rows, devices)
    return (*padded(self.layers, self.rows, mesh), self.cols)


class Merged(NamedTuple):
  """Result of a step. Sums, not norms, so that blocks of rows add up."""

  out_LxRxC: jax.Array
  delta_sq_LxN: jax.Array  # ||D_i||^2
  zeros_LxN: jax.Array  # entries with D_i = 0, padding included
  update_sq_L: jax.Array  # ||U||^2
  loss_sq_L: jax.Array  # ||round(W_0 + U) - W_0 - U||^2
  finite_LxS: jax.Array  # no NaN or Inf in source s (0: base)
  out_finite_L: jax.Array
  stats: dict[str, jax.Array]
  head: Head | None


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A compiled step with the shardings its arguments must have."""

  run: Any
  shape: tuple[int, int, int]  # padded
  stack: jax.sharding.Sharding
  layer: jax.sharding.Sharding
  whole: jax.sharding.Sharding


def staged_dtype(code: str) -> Any:
  """The dtype in which a stored tensor reaches the device: float64 goes as float32."""
  return DTYPES['F32' if code == 'F64' else code]


@functools.lru_cache(maxsize=256)
def compile_kernel(spec: KernelSpec, devices: tuple[jax.Device, ...]) -> Kernel:
  """Compiles ahead of time, so that many can compile while the first bytes are read."""
  mesh = mesh_for(spec.layers, spec.rows, devices)
  shape = layers, rows, cols = spec.padded_shape(devices)
  stack, layer, whole = stack_sharding(mesh), layer_sharding(mesh), replicated(mesh)

  def aval(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  n = len(spec.dtypes) - 1
  sources = tuple(aval(shape, staged_dtype(code), stack) for code in spec.dtypes)
  head = None
  if spec.head_given:
    k = min(method_of(spec.params).head_rank(spec.params), spec.rows, spec.cols)
    f32 = functools.partial(aval, dtype=jnp.float32, sharding=layer)
    head = Head(
      f32((layers, n, k, rows)), f32((layers, n, k, cols)), f32((layers, n, k)),
      f32((layers, n)), f32((layers, n)), aval((layers, n), jnp.bool_, layer),
    )  # fmt: skip
  run = (
    jax.jit(functools.partial(_merge_stack, spec))
    .lower(
      sources[0],
      sources[1:],
      aval((n,), jnp.float32, whole),
      aval((layers,), jnp.uint32, layer),
      head,
    )
    .compile()
  )
  return Kernel(run, shape, stack, layer, whole)


def _merge_stack(
  spec: KernelSpec,
  base_LxRxC: jax.Array,
  experts: tuple[jax.Array, ...],
  weights_N: jax.Array,
  ids_L: jax.Array,
  head: Head | None,
) -> Merged:
  one = functools.partial(_merge_one, spec)
  return jax.vmap(one, (0, 0, None, 0, 0))(base_LxRxC, experts, weights_N, ids_L, head)


def _merge_one(
  spec: KernelSpec,
  stored_base_RxC: jax.Array,
  stored_NxRxC: tuple[jax.Array, ...],
  weights_N: jax.Array,
  tensor_id: jax.Array,
  head: Head | None,
) -> Merged:
  """One matrix: exact float32 differences, head, merge, one rounding."""
  method = method_of(spec.params)
  base_RxC = stored_base_RxC.astype(jnp.float32)
  delta_NxRxC = tuple(x.astype(jnp.float32) - base_RxC for x in stored_NxRxC)
  k = method.head_rank(spec.params)
  if k and head is None:
    key = jax.random.fold_in(jax.random.key(spec.seed), tensor_id)
    keys_N = jax.random.split(key, len(delta_NxRxC))
    solve = functools.partial(top_k, k=k)
    head = jax.vmap(lambda delta, key: solve(delta, key=key))(
      jnp.stack(delta_NxRxC), keys_N
    )
  update, stats = method.merge(
    base_RxC,
    delta_NxRxC,
    head,
    weights_N=weights_N,
    family=spec.family,
    params=spec.params,
  )
  update_RxC = apply_update(update, delta_NxRxC)
  merged_RxC = base_RxC + update_RxC
  out_RxC = merged_RxC.astype(staged_dtype(spec.out_dtype))
  loss_RxC = out_RxC.astype(jnp.float32) - merged_RxC
  squares = sums([x * x for x in (*delta_NxRxC, update_RxC, loss_RxC)])
  zeros = [jnp.sum(d == 0, axis=1, dtype=jnp.int32).sum() for d in delta_NxRxC]
  return Merged(
    out_LxRxC=out_RxC,
    delta_sq_LxN=squares[:-2],
    zeros_LxN=jnp.stack(zeros),
    update_sq_L=squares[-2],
    loss_sq_L=squares[-1],
    finite_LxS=jnp.stack([jnp.isfinite(x).all() for x in (base_RxC, *delta_NxRxC)]),
    out_finite_L=jnp.isfinite(out_RxC).all(),
    stats=stats,
    head=head,
  )
