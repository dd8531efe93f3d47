"""The coefficients of an update from what was measured, in a small program of their own.

They are computed layer by layer, as within a merge, so that their bits are the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from resmerge_jax.methods.table import method_of
from resmerge_jax.pipeline.kernel_spec import KernelSpec
from resmerge_jax.pipeline.kernels import CPU_OPTIONS
from resmerge_jax.pipeline.program_cache import cached
from resmerge_jax.sharding import by_layer, each, layer_sharding
from resmerge_jax.types import Family


def compile_coefficients(
  spec: KernelSpec, devices: tuple[jax.Device, ...]
) -> jax.stages.Compiled:
  """What `Refit.measure` found of each layer -> {a_N, w_T}, stats; all with an axis L."""
  layers, mesh = spec.padded_shape(devices)[0], spec.mesh(devices)
  return _compiled(
    spec.params, spec.family, spec.n_experts, spec.head_rank, layers, mesh
  )


@functools.lru_cache(maxsize=256)
def _compiled(
  params: Any,
  family: Family | None,
  n: int,
  k: int,
  layers: int,
  mesh: jax.sharding.Mesh,
) -> jax.stages.Compiled:
  """One for all stacks that are alike in this; the size of their matrices is not in it."""
  refit = method_of(params).refit
  assert refit is not None
  devices = tuple(mesh.devices.flat)
  on_cpu, layer = devices[0].platform == 'cpu', layer_sharding(mesh)

  def one(measured: dict[str, jax.Array]) -> Any:
    no_vectors = jnp.zeros((n * k, 0), jnp.float32)
    update, stats = refit.update(
      measured, no_vectors, no_vectors, family=family, params=params
    )
    return {'a_N': update.a_N, 'w_T': update.w_T}, stats

  def compile_program() -> jax.stages.Compiled:
    on_layers = by_layer(lambda measured_L: each(one, measured_L, not on_cpu), mesh)
    measured_L = {
      key: jax.ShapeDtypeStruct((layers, *shape), jnp.float32, sharding=layer)
      for key, shape in refit.shapes(n).items()
    }
    lowered = jax.jit(on_layers, out_shardings=layer).lower(measured_L)
    return lowered.compile(CPU_OPTIONS if on_cpu else None)

  key = 'coefficients', params, family, n, k, layers, mesh.shape_tuple
  return cached(key, devices, compile_program)
