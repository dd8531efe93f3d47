"""The compiled step: stored weights of a layer stack in, merged weights and stats out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.gram import another_pass
from resmerge_jax.linalg.head import Head, ritz_size
from resmerge_jax.linalg.task_vectors import (
  Products,
  TaskVectors,
  formed,
  narrow,
  widen,
)
from resmerge_jax.methods.base import Context, Dense, apply_update
from resmerge_jax.methods.table import method_of, needs_float64, post_of
from resmerge_jax.pipeline.kernel_spec import KernelSpec, ScanAt, device_dtype
from resmerge_jax.pipeline.packed import Packed, pack
from resmerge_jax.pipeline.program_cache import cached
from resmerge_jax.pipeline.solve import Passes, Solved, solve_heads
from resmerge_jax.pipeline.sums import Numbers, Sums, merge_sums
from resmerge_jax.pipeline.updates import FROM_RECIPE, Updated, to_recipe, updated
from resmerge_jax.sharding import (
  AXES,
  apart_by_layer,
  each,
  expert_sharding,
  layer_sharding,
  replicated,
  stack_sharding,
)

# These compile our programs a third faster than XLA:CPU's defaults, and the result runs
# as fast (measured, docs/performance.md).
CPU_OPTIONS: dict[str, str | bool] = {
  'xla_cpu_use_fusion_emitters': False,
  'xla_backend_optimization_level': '1',
  'xla_cpu_parallel_codegen_split_count': '1',
}


Factors = tuple[jax.Array, jax.Array]  # left NxRxF, right NxFxC of D_i = left_i right_i


class Found(NamedTuple):
  """What a step tells of its matrices beside the merged weights."""

  sums: Sums
  stats: dict[str, Numbers]
  head: Head | None
  recipe: dict[str, Numbers] | None  # what a recipe keeps, where one is saved


class Merged(NamedTuple):
  """Result of a step. `out_LxRxC` is None where it was measured, not merged.

  `found` is a Found. `stats`: what another program has found for it.
  """

  out_LxRxC: Numbers | None
  found: Packed
  lent: 'Lent | None' = None
  stats: dict[str, Numbers] | None = None


class Lent(NamedTuple):
  """What other settings of a sweep take from this one, on the devices."""

  heads: tuple[Head, ...]  # of `KernelSpec.solved`
  measured: dict[str, jax.Array]


class Measured(Protocol):
  """What `KernelSpec.measure` is, beside a frozen dataclass."""

  def __call__(
    self, delta_NxRxC: TaskVectors, head: Head | None, out_dtype: str
  ) -> tuple[Sums, dict[str, jax.Array]]:
    """Sums, of no update, and the numbers of one matrix. `head` where one was wanted."""


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A compiled step with the shardings its arguments must have."""

  run: Any
  shape: tuple[int, int, int]  # padded
  base: jax.sharding.Sharding
  experts: jax.sharding.Sharding
  layer: jax.sharding.Sharding
  whole: jax.sharding.Sharding


@functools.lru_cache(maxsize=64)
def random_start(seed: int, shape: tuple[int, int]) -> np.ndarray:
  """The solver's start, PxC: orthonormal rows, the same for all matrices of one width.

  It depends on the seed and the shape alone, so neither the order of the tensors nor
  the devices change a result.
  """
  rng = np.random.default_rng([seed, *shape])
  start_PxC = np.zeros(shape, np.float32)
  rows_XxC = np.linalg.qr(rng.standard_normal(shape[::-1]))[0].T
  start_PxC[: len(rows_XxC)] = rows_XxC  # P > C only where no start is used
  return start_PxC


@functools.lru_cache(maxsize=256)
def compile_kernel(spec: KernelSpec, devices: tuple[jax.Device, ...]) -> Kernel:
  """Compiles ahead of time, so that many can compile while the first bytes are read."""
  mesh = spec.mesh(devices)
  shape = layers, rows, cols = spec.padded_shape(devices)
  on_base, on_experts = stack_sharding(mesh), expert_sharding(mesh)
  layer, whole = layer_sharding(mesh), replicated(mesh)

  def aval(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  n = spec.n_experts
  per_layer = functools.partial(aval, sharding=layer)
  arrays: dict[str, Any] = {
    'weights_N': per_layer((layers, n), jnp.float32),
    'keys_Nx2': per_layer((layers, n, 2), jnp.uint32),
    **dict.fromkeys(
      ('row_start', 'layer', 'n_layers'), per_layer((layers,), jnp.int32)
    ),
    'found': {k: per_layer((layers, *shape), dtype) for k, shape, dtype in spec.found},
  }
  context = Context(**arrays)
  base = aval(shape, device_dtype(spec.base_dtype), on_base)
  shape_whole = layers, spec.n_whole, rows, cols
  experts = aval(shape_whole, device_dtype(spec.expert_dtype), on_experts)
  factors = None
  if spec.rank:
    factors = (
      aval((layers, n, rows, spec.rank), jnp.float32, on_experts),
      aval((layers, n, spec.rank, cols), jnp.float32, layer),
    )
  head = None
  if spec.head_given:
    k = spec.head_rank
    f32 = functools.partial(aval, dtype=jnp.float32, sharding=layer)
    fields: tuple[Any, ...] = (
      f32((layers, n, k, rows)), f32((layers, n, k, cols)), f32((layers, n, k)),
      f32((layers, n)), f32((layers, n)), aval((layers, n), jnp.bool_, layer),
      f32((layers, n, ritz_size(k, min(spec.rows, cols)), cols)),
    )  # fmt: skip
    head = Head(*fields)
  on_cpu = devices[0].platform == 'cpu'
  passes = Passes(at_once=not on_cpu, row_shards=mesh.shape[AXES[1]])
  start = aval(spec.start_shape, jnp.float32, whole)
  arguments = (base, experts, factors, context, start, head)

  def compile_program() -> jax.stages.Compiled:
    stepped = apart_by_layer(functools.partial(_on_stack, spec, passes), mesh)
    merged = Merged(on_base, *cast(Any, (layer,) * 3))  # a tree's prefix
    shardings = merged if spec.scan is None and spec.measure is None else layer
    with jax.enable_x64(needs_float64(spec.params, spec.post)):
      lowered = jax.jit(stepped, out_shardings=shardings).lower(*arguments)
      return lowered.compile(CPU_OPTIONS if on_cpu else None)

  run = cached((spec, mesh.shape_tuple), tuple(mesh.devices.flat), compile_program)
  return Kernel(run, shape, on_base, on_experts, layer, whole)


def _on_stack(
  spec: KernelSpec,
  passes: Passes,
  base_LxRxC: jax.Array,
  experts_LxMxRxC: jax.Array,
  factors_L: Factors | None,
  context_L: Context,
  start_PxC: jax.Array,
  head: Head | None,
) -> Any:
  def one(
    stored: tuple[jax.Array, jax.Array, Factors | None, Context, Head | None],
  ) -> Any:
    base_RxC, experts_MxRxC, factors, context, head = stored
    delta_NxRxC = _task_vectors(spec, base_RxC, experts_MxRxC, factors)
    one_matrix = delta_NxRxC, context, start_PxC, head
    if spec.measure is not None:
      return _measured(spec, passes, delta_NxRxC, start_PxC, head)
    if spec.scan is None:
      return _merge_one(spec, passes, *one_matrix)
    return _measure_one(spec, spec.scan, passes, *one_matrix)

  stacked = (base_LxRxC, experts_LxMxRxC, factors_L, context_L, head)
  return each(one, stacked, passes.at_once)


def _task_vectors(
  spec: KernelSpec,
  base_RxC: jax.Array,
  experts_MxRxC: jax.Array,
  factors: Factors | None,
) -> Any:
  """As expressions of what is stored where the method allows that, else formed."""
  if spec.whole is None and factors is None:
    return TaskVectors(base_RxC, experts_MxRxC)
  whole = tuple(range(spec.n_experts)) if spec.whole is None else spec.whole
  entries = spec.measure is not None  # are looked at one by one
  if whole or spec.post or entries or not method_of(spec.params).on_factors:
    return formed(base_RxC, experts_MxRxC, whole, factors, spec.n_experts)
  if factors is None:  # no expert changes these tensors
    n, (n_rows, n_cols) = spec.n_experts, base_RxC.shape
    factors = jnp.zeros((n, n_rows, 1)), jnp.zeros((n, 1, n_cols))
  return Products(base_RxC, *factors)


def _measured(
  spec: KernelSpec,
  passes: Passes,
  delta_NxRxC: TaskVectors,
  start_PxC: jax.Array,
  head: Head | None,
) -> Merged:
  """Numbers of one matrix in place of a merge."""
  if spec.head_rank and head is None:
    (head,) = solve_heads((spec.head_rank,), passes, delta_NxRxC, start_PxC).heads
  sums, stats = spec.measure(delta_NxRxC, head, spec.out_dtype)
  return Merged(None, pack(Found(sums, stats, head, None)))


def _measure_one(
  spec: KernelSpec,
  at: ScanAt,
  passes: Passes,
  delta_NxRxC: TaskVectors,
  context: Context,
  start_PxC: jax.Array,
  head: Head | None,
) -> dict[str, jax.Array]:
  """The sums of a scan over one matrix."""
  if at.post is None:
    scan = method_of(spec.params).scans(spec.params)[at.number]
    return scan.measure(delta_NxRxC, context=context, params=spec.params)
  before = dataclasses.replace(spec, post=spec.post[: spec.post.index(at.post)])
  one, _ = _update_one(before, passes, delta_NxRxC, context, start_PxC, head)
  scan = post_of(at.post).scans(at.post)[at.number]
  return scan.measure(*another_pass(one.update, delta_NxRxC), params=at.post)


def _merge_one(
  spec: KernelSpec,
  passes: Passes,
  delta_NxRxC: Any,
  context: Context,
  start_PxC: jax.Array,
  head: Head | None,
) -> Merged:
  """One matrix: exact float32 differences, the update, one rounding."""
  one, solved = _update_one(spec, passes, delta_NxRxC, context, start_PxC, head)
  recipe, update = to_recipe(one) if spec.recipe == 'save' else None, one.update
  if isinstance(delta_NxRxC, Products):
    update = Dense(apply_update(update, delta_NxRxC))  # a product: once, and kept
  delta_NxRxC, update = another_pass(delta_NxRxC, update)
  merged_RxC = widen(delta_NxRxC.base_RxC) + apply_update(update, delta_NxRxC)
  out_RxC = narrow(merged_RxC, device_dtype(spec.out_dtype))
  sums = merge_sums(solved.known, *another_pass(delta_NxRxC, update, out_RxC))
  lent = Lent(solved.heads, one.measured) if spec.lends else None
  found = Found(sums, one.stats, own_head(spec, solved.heads), recipe)
  return Merged(out_RxC, pack(found), lent)


def _update_one(
  spec: KernelSpec,
  passes: Passes,
  delta_NxRxC: TaskVectors,
  context: Context,
  start_PxC: jax.Array,
  head: Head | None,
) -> tuple[Updated, Solved]:
  """Heads, merge, post-processors of one matrix; the head is as given, or found."""
  solved = Solved() if head is None else Solved((head,))
  if spec.head_rank and head is None and spec.recipe not in FROM_RECIPE:
    solved = solve_heads(spec.solved, passes, delta_NxRxC, start_PxC)
  return updated(spec, delta_NxRxC, own_head(spec, solved.heads), context), solved


def own_head(spec: KernelSpec, heads: Sequence[Head]) -> Head | None:
  """That of the method's rank, among those that were solved."""
  return heads[spec.solved.index(spec.head_rank)] if heads else None
