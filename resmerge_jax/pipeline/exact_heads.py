"""Second try, on the host in float64, for matrices whose head the solver flagged."""

import dataclasses
from collections.abc import Callable, MutableMapping

import jax
import numpy as np

from resmerge_jax.linalg.exact import HostHead, host_head
from resmerge_jax.linalg.head import MAX_ERROR, Head
from resmerge_jax.methods.base import Context
from resmerge_jax.pipeline.fetched import Fetched, Piece, fetch
from resmerge_jax.pipeline.kernel_spec import KernelSpec, as_bits
from resmerge_jax.pipeline.kernels import compile_kernel
from resmerge_jax.pipeline.staging import Shard
from resmerge_jax.plan.stacks import Step


def replace_flagged(
  spec: KernelSpec,
  step: Step,
  fetched: Fetched,
  read_layer: Callable[[int], Shard],
  context_L: Context,
  device: jax.Device,
  solved: MutableMapping[tuple[int, int, int], HostHead],
) -> tuple[Fetched, np.ndarray]:
  """`fetched` with every layer redone whose head error exceeds MAX_ERROR.

  `read_layer` reads the whole matrices of one layer, which the devices of this process
  may hold in part only. `solved` keeps exact heads by layer, expert and rank, for other
  settings of a sweep. The process that owns a layer writes all rows of it then.
  Returns a boolean array too, one row per layer held: the heads that came from float64.
  Layers whose task vectors are not finite are left alone: the caller reports them.
  """
  sums, head = fetched.found.sums, fetched.found.head
  if head is None:
    return fetched, np.zeros(sums.delta_sq_LxN.shape, bool)
  flagged_LxN = ~(head.error <= MAX_ERROR)  # NaN too
  flagged_LxN &= np.isfinite(sums.delta_sq_LxN).all(1, keepdims=True)
  redo = np.flatnonzero(flagged_LxN.any(1)).tolist()
  if not redo:
    return fetched, flagged_LxN
  fetched = fetched.writable()
  pieces = [
    p for p in fetched.pieces if p.layer not in {fetched.layers[i] for i in redo}
  ]
  for at in redo:
    if fetched.owned[at]:
      layer = fetched.layers[at]
      shard = read_layer(layer)
      context = jax.tree.map(lambda x, i=layer: x[i : i + 1], context_L)
      redone = _redone(
        spec, step, fetched, at, flagged_LxN[at], shard, context, device, solved
      )
      pieces += [piece._replace(layer=layer) for piece in redone]
  return dataclasses.replace(fetched, pieces=tuple(pieces)), flagged_LxN


def _redone(
  spec: KernelSpec,
  step: Step,
  fetched: Fetched,
  at: int,
  flagged_N: np.ndarray,
  shard: Shard,
  context: Context,
  device: jax.Device,
  solved: MutableMapping[tuple[int, int, int], HostHead],
) -> tuple[Piece, ...]:
  """The merged matrix from exact heads; puts its numbers into `fetched`."""
  one = dataclasses.replace(spec.alone(), layers=1, mesh_shape=None)
  kernel = compile_kernel(one, (device,))
  head = jax.tree.map(lambda x: x[at : at + 1, ...].copy(), fetched.found.head)
  head = head._replace(y_KxR=np.ascontiguousarray(head.y_KxR[..., : spec.rows]))
  for i in np.flatnonzero(flagged_N):
    key = fetched.layers[at], int(i), spec.head_rank
    if key not in solved:
      solved[key] = _solved(head, int(i), shard)
    _put(solved[key], head, int(i))
  redone = kernel.run(
    jax.device_put(as_bits(shard.base), kernel.base),
    jax.device_put(as_bits(shard.experts), kernel.experts),
    jax.device_put((shard.left, shard.right), (kernel.experts, kernel.layer))
    if spec.rank
    else None,
    jax.device_put(context, kernel.layer),
    jax.device_put(np.zeros(one.start_shape, np.float32), kernel.whole),
    jax.device_put(head, kernel.layer),
  )
  matrix = fetch(dataclasses.replace(step, names=step.names[:1]), redone)
  old_leaves, new_leaves = (jax.tree.leaves(of.found) for of in (fetched, matrix))
  for into, value in zip(old_leaves, new_leaves, strict=True):
    into[at, ...][tuple(slice(n) for n in value.shape[1:])] = value[0]
  return matrix.pieces


def _solved(head: Head, i: int, shard: Shard) -> HostHead:
  """The exact head of expert `i`; `head` (arrays 1xNx...) has a start for it."""
  return host_head(
    shard.difference(0, i + 1), head.sigma_K.shape[-1], np.asarray(head.ritz_MxC[0, i])
  )


def _put(found: HostHead, head: Head, i: int) -> None:
  """Puts the exact head of expert `i` into `head`."""
  head.y_KxR[0, i], head.v_KxC[0, i] = found.y_KxR, found.v_KxC
  head.sigma_K[0, i], head.sigma_next[0, i] = found.sigma_K, found.sigma_next
  head.error[0, i] = found.error
  head.certified[0, i] |= found.certified
