"""Second try, on the host in float64, for matrices whose head the solver flagged."""

import dataclasses

import jax
import numpy as np

from resmerge_jax.host_float import to_float32
from resmerge_jax.linalg.exact import host_head
from resmerge_jax.linalg.krylov import MAX_ERROR, Head
from resmerge_jax.pipeline.kernels import (
  KernelSpec,
  Merged,
  as_bits,
  compile_kernel,
  on_host,
)
from resmerge_jax.pipeline.staging import Staged


def replace_flagged(
  spec: KernelSpec,
  merged: Merged,
  inputs: Staged,
  n_layers: int,
  weights_N: np.ndarray,
  device: tuple[jax.Device, ...],
) -> tuple[Merged, np.ndarray]:
  """`merged` with every layer redone whose head error exceeds MAX_ERROR.

  Returns it with a boolean LxN array that tells which heads came from float64. Layers
  whose task vectors are not finite are left alone: the caller reports them.
  """
  shape = merged.sums.delta_sq_LxN.shape
  if merged.head is None:
    return merged, np.zeros(shape, bool)
  flagged_LxN = ~(merged.head.error <= MAX_ERROR)  # NaN too
  flagged_LxN[n_layers:] = False
  flagged_LxN &= np.isfinite(merged.sums.delta_sq_LxN).all(1, keepdims=True)
  layers = np.flatnonzero(flagged_LxN.any(1))
  if not layers.size:
    return merged, flagged_LxN
  merged = jax.tree.map(np.array, merged)  # own, writable copies
  one = dataclasses.replace(spec, layers=1, head_given=True)
  kernel = compile_kernel(one, device)
  rows = kernel.shape[1]
  for layer in layers:
    head = jax.tree.map(lambda x, at=layer: x[at : at + 1, ...].copy(), merged.head)
    for i in np.flatnonzero(flagged_LxN[layer]):
      _solve(head, int(i), inputs.base[layer], inputs.experts[layer, i], rows)
    one_layer = slice(layer, layer + 1)
    redone = kernel.run(
      jax.device_put(as_bits(inputs.base[one_layer, :rows]), kernel.base),
      jax.device_put(as_bits(inputs.experts[one_layer, :, :rows]), kernel.experts),
      jax.device_put(weights_N, kernel.whole),
      jax.device_put(np.zeros(one.start_shape, np.float32), kernel.whole),
      jax.device_put(_fit(head, rows), kernel.layer),
    )
    fetched = on_host(one, redone)
    for old, new in zip(jax.tree.leaves(merged), jax.tree.leaves(fetched), strict=True):
      value = new[0]
      old[layer, ...][tuple(slice(n) for n in value.shape)] = value
  return merged, flagged_LxN


def _solve(
  head: Head, i: int, base_RxC: np.ndarray, expert_RxC: np.ndarray, rows: int
) -> None:
  """Puts the exact head of expert `i` into `head` (arrays 1xNx...)."""
  delta_RxC = to_float32(expert_RxC[:rows]) - to_float32(base_RxC[:rows])
  found = host_head(delta_RxC, head.sigma_K.shape[-1], np.asarray(head.ritz_MxC[0, i]))
  head.y_KxR[0, i, :, :rows], head.v_KxC[0, i] = found.y_KxR, found.v_KxC
  head.sigma_K[0, i], head.sigma_next[0, i] = found.sigma_K, found.sigma_next
  head.error[0, i] = found.error
  head.certified[0, i] |= found.certified


def _fit(head: Head, rows: int) -> Head:
  """Heads of a padded step cut to the rows of the unpadded one."""
  return head._replace(y_KxR=head.y_KxR[..., :rows])
