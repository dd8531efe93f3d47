"""One magnitude threshold per expert for the whole model, and the model's majority sign.

What the official TIES code takes from all tensors at once, in three reading passes
and without holding them: the bits of |x|, 31 of them, order as |x| does, so a histogram of
the upper 15 bits finds the threshold's bucket, and one of the lower 16 bits inside that
bucket finds the threshold exactly.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.order_statistic import counts_of_rows, magnitude_bits
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, Findings, Scan, TensorFacts, Totals
from resmerge_jax.methods.sign_election import masked, vote

LOW_BITS = 16
BUCKETS, LOWS = 1 << (31 - LOW_BITS), 1 << LOW_BITS
BELOW, ABOVE = LOWS, LOWS + 1  # entries outside the bucket

# The N matrices RxC that are to be trimmed, and the fraction to keep of them.
Vectors = Callable[[TaskVectors, Context, Any], list[jax.Array]]
Keep = Callable[[Any], float]
Facts = Mapping[str, TensorFacts]


def trim_scans(vectors: Vectors, keep: Keep) -> tuple[Scan, ...]:
  """Scans that find `bits_N`, int32, of the thresholds, and `majority`, int32, a sign."""
  steps = (
    (_upper_bits, functools.partial(_bucket, keep)),
    (_lower_bits, functools.partial(_threshold, keep)),
    (_signs, _majority),
  )
  return tuple(
    Scan(functools.partial(measure, vectors), finish, whole_model=True)
    for measure, finish in steps
  )


def threshold_masks(x_NxRxC: list[jax.Array], context: Context) -> list[jax.Array]:
  """Where an expert's entry reaches its threshold."""
  bits_N = context.found['bits_N']
  return [
    magnitude_bits(x_RxC) >= bits for x_RxC, bits in zip(x_NxRxC, bits_N, strict=True)
  ]


def _histogram(at_RxC: jax.Array, n_bins: int) -> jax.Array:
  # A scatter of int32 ones: 3 to 5 ns an entry on CPU; a sort takes 140.
  return jnp.zeros(n_bins, jnp.int32).at[at_RxC].add(1, mode='promise_in_bounds')


def _upper_bits(
  vectors: Vectors, delta_NxRxC: TaskVectors, *, context: Context, params: Any
) -> dict[str, jax.Array]:
  x_NxRxC = vectors(delta_NxRxC, context, params)
  bins_NxB = [_histogram(magnitude_bits(x) >> LOW_BITS, BUCKETS) for x in x_NxRxC]
  return {'bins_NxB': jnp.stack(bins_NxB)}


def _bucket(
  keep: Keep,
  totals: Totals,
  facts: Facts,
  params: Any,
  before: Findings,  # noqa: ARG001
) -> Findings:
  bins_NxB = totals['']['bins_NxB'].astype(np.int64)
  size, rank = _rank(facts, keep(params))
  bins_NxB[:, 0] += size - bins_NxB.sum(1)  # the mesh pads with zeros
  return {'': {'bucket_N': _bin_of(rank, bins_NxB)}}


def _lower_bits(
  vectors: Vectors, delta_NxRxC: TaskVectors, *, context: Context, params: Any
) -> dict[str, jax.Array]:
  bins = []
  bucket_N = context.found['bucket_N']
  for x, bucket in zip(vectors(delta_NxRxC, context, params), bucket_N, strict=True):
    bits_RxC = magnitude_bits(x)
    upper_RxC = bits_RxC >> LOW_BITS
    outside_RxC = jnp.where(upper_RxC < bucket, BELOW, ABOVE)
    inside_RxC = bits_RxC & (LOWS - 1)
    at_RxC = jnp.where(upper_RxC == bucket, inside_RxC, outside_RxC)
    bins.append(_histogram(at_RxC, LOWS + 2))
  return {'bins_NxB': jnp.stack(bins)}


def _threshold(
  keep: Keep, totals: Totals, facts: Facts, params: Any, before: Findings
) -> Findings:
  bucket_N = before['']['bucket_N']
  bins_NxB = totals['']['bins_NxB'].astype(np.int64)
  size, rank = _rank(facts, keep(params))
  below_N = bins_NxB[:, BELOW] + np.where(bucket_N > 0, size - bins_NxB.sum(1), 0)
  bins_NxB[:, 0] += np.where(bucket_N == 0, size - bins_NxB.sum(1), 0)
  low_N = _bin_of(rank - below_N, bins_NxB[:, :LOWS])
  bits_N = (bucket_N << LOW_BITS) | low_N if rank else 0 * low_N
  return {'': {'bits_N': bits_N.astype(np.int32)}}


def _signs(
  vectors: Vectors, delta_NxRxC: TaskVectors, *, context: Context, params: Any
) -> dict[str, jax.Array]:
  x_NxRxC = vectors(delta_NxRxC, context, params)
  x_NxRxC = masked(threshold_masks(x_NxRxC, context), x_NxRxC)
  plus_RxC, minus_RxC = vote(_weighted(x_NxRxC, context))
  positive, negative = counts_of_rows([plus_RxC > minus_RxC, plus_RxC < minus_RxC]).sum(
    1
  )
  return {'signs': positive - negative}


def _majority(
  totals: Totals,
  facts: Facts,  # noqa: ARG001
  params: Any,  # noqa: ARG001
  before: Findings,  # noqa: ARG001
) -> Findings:
  return {'': {'majority': np.sign(totals['']['signs']).astype(np.int32)}}


def _weighted(x_NxRxC: list[jax.Array], context: Context) -> list[jax.Array]:
  return [w * x_RxC for w, x_RxC in zip(context.weights_N, x_NxRxC, strict=True)]


def _rank(facts: Facts, keep: float) -> tuple[int, int]:
  """Number D of entries, and that of the threshold from below: k = D - int(keep D).

  k = 0, all are kept, is the official code's crash; there the threshold is 0.
  """
  size = sum(math.prod(fact.shape) for fact in facts.values())
  return size, size - int(keep * size)


def _bin_of(rank_N: np.ndarray | int, bins_NxB: np.ndarray) -> np.ndarray:
  """The bin that holds the entry of this rank, the lowest being 1."""
  below_NxB = np.cumsum(bins_NxB, axis=1) < np.reshape(rank_N, (-1, 1))
  return below_NxB.sum(1).astype(np.int32)
