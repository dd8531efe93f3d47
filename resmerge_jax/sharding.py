"""The device mesh and how a step's arrays lie on it. Nothing else names a mesh axis."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resmerge_jax.errors import InputError

AXES = ('layer', 'row')
# Rows per device below which a reduction across devices costs more than it saves.
MIN_ROWS = 256


def mesh_for(
  layers: int,
  rows: int,
  devices: Sequence[jax.Device],
  fixed: tuple[int, int] | None = None,
) -> Mesh:
  """Mesh ('layer', 'row') for a step of this shape, or of the shape `fixed`.

  Layers first, as they need no communication; rows take the remaining devices while
  each keeps MIN_ROWS. Columns are never split: a block of rows is one byte range.
  A step too small for all devices uses the first few CPUs; TPUs of several hosts take
  part in a program all or none, so there, layers of padding occupy the others.
  """
  if fixed:
    on_layers, on_rows = fixed
  else:
    on_layers = _largest_divisor(len(devices), layers)
    on_rows = _largest_divisor(len(devices) // on_layers, max(rows // MIN_ROWS, 1))
    if devices[0].platform != 'cpu':
      on_layers = len(devices) // on_rows
  grid = np.asarray(devices[: on_layers * on_rows]).reshape(on_layers, on_rows)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def padded(layers: int, rows: int, mesh: Mesh) -> tuple[int, int]:
  """The step's shape rounded up to what the mesh divides. Padding is zeros."""
  on_layers, on_rows = (mesh.shape[axis] for axis in AXES)
  return math.ceil(layers / on_layers) * on_layers, math.ceil(rows / on_rows) * on_rows


def merge_devices(
  mesh_shape: tuple[int, int] | None = None,
  devices: Sequence[jax.Device] | None = None,
  own: bool = False,
  host: bool = False,
) -> tuple[jax.Device, ...]:
  """All devices of all processes, or `devices`; a mesh that the user sets must fit them.

  `own`: those of this process alone. `host`: CPUs, whatever else there is.

  Raises:
    InputError: it needs more devices than there are, or some TPUs of several.
  """
  if devices is None:
    devices = jax.local_devices() if own else jax.devices()
    if host and devices[0].platform != 'cpu':
      devices = jax.local_devices(backend='cpu') if own else jax.devices('cpu')
  devices = tuple(devices)
  if mesh_shape and math.prod(mesh_shape) > len(devices):
    raise InputError(
      f'mesh: got layer:{mesh_shape[0]},row:{mesh_shape[1]}, which needs '
      f'{math.prod(mesh_shape)} devices; there are {len(devices)}',
      fix='choose a smaller mesh, or leave it out: it is then chosen for each step',
    )
  if (
    mesh_shape
    and devices[0].platform == 'tpu'
    and math.prod(mesh_shape) not in (1, len(devices))
  ):
    raise InputError(
      f'mesh: got layer:{mesh_shape[0]},row:{mesh_shape[1]}, which is '
      f'{math.prod(mesh_shape)} of {len(devices)} TPUs',
      why='a program runs on all TPUs of a slice or on one',
      fix=f'choose numbers whose product is {len(devices)}, or leave the mesh out',
    )
  return devices


def each(one: Callable[[Any], Any], stacked: Any, at_once: bool) -> Any:
  """`one` on every entry of the leading axis: as one batched program, or in turn.

  In turn one matrix stays in the cache for all its steps and a solver's loop ends when
  that matrix is done: on CPU twice as fast. Accelerators want the batch.
  """
  if at_once:
    return jax.vmap(one)(stacked)
  # The slice is copied by itself: fused into its consumer it keeps that from vectorising.
  return jax.lax.map(lambda x: one(jax.lax.optimization_barrier(x)), stacked)


def apart_by_layer(on_stack: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """`on_stack(base, experts, factors, context, start, head)` on each device's own layers.

  Layers share nothing, not even whether to go on with the solver's loop. Rows stay to
  the compiler: it adds the all-reduces of their sums. One device has nothing to share;
  its program compiles sooner without.
  """
  if mesh.size == 1:
    return on_stack
  by_layer, whole = PartitionSpec(AXES[0]), PartitionSpec()
  return jax.shard_map(
    on_stack,
    mesh=mesh,
    axis_names={AXES[0]},
    in_specs=(by_layer, by_layer, by_layer, by_layer, whole, by_layer),
    out_specs=by_layer,
    check_vma=False,
  )


def by_layer(on_layers: Callable[[Any], Any], mesh: Mesh) -> Callable[[Any], Any]:
  """The same for a function of one tree of arrays with an entry per layer."""
  if mesh.size == 1:
    return on_layers
  layers = PartitionSpec(AXES[0])
  return jax.shard_map(
    on_layers,
    mesh=mesh,
    axis_names={AXES[0]},
    in_specs=layers,
    out_specs=layers,
    check_vma=False,
  )


def stack_sharding(mesh: Mesh) -> NamedSharding:
  """Of LxRxC arrays: layers and rows split, columns whole."""
  return NamedSharding(mesh, PartitionSpec(*AXES, None))


def expert_sharding(mesh: Mesh) -> NamedSharding:
  """Of LxNxRxC arrays: every device holds all experts of its rows."""
  return NamedSharding(mesh, PartitionSpec(AXES[0], None, AXES[1], None))


def layer_sharding(mesh: Mesh) -> NamedSharding:
  """Of arrays with one entry per layer."""
  return NamedSharding(mesh, PartitionSpec(AXES[0]))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def _largest_divisor(n: int, most: int) -> int:
  return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))
