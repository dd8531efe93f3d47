"""The numbers of one matrix, traced in place of a merge (KernelSpec.measure).

Sums, so that blocks of rows add up; what heads give (of whole matrices) beside them.
W stands for the measured sources: N experts, and a merged model after them if one is
looked at. E are leading shares of energy, B the rows and columns of a sample.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.gram import another_pass, row_sums
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.orthonormal import dot
from resmerge_jax.linalg.quadrature import spectrum, tridiagonals
from resmerge_jax.linalg.task_vectors import TaskVectors, widen
from resmerge_jax.methods import resmerge
from resmerge_jax.pipeline.sums import Sums
from resmerge_jax.types import DTYPES

SAMPLE = 64  # rows and columns of the block that tells the rank
_GATE = resmerge.ResMerge()  # s_R, c_R and S_H as the paper defines them


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What to measure. `threshold`: RAM's, on |D|.

  `exact_side`: matrices with a head whose short side is at most this get their whole
  spectrum, the others what estimates its entropy; None: neither. `n_merged`: 1 if the last of the
  experts is a merged model, which takes no part in what compares experts.
  """

  threshold: float
  exact_side: int | None = None
  n_merged: int = 0

  def __call__(
    self, delta_NxRxC: TaskVectors, head: Head | None, out_dtype: str
  ) -> tuple[Sums, dict[str, jax.Array]]:
    """Sums and numbers of one matrix; spectrum and geometry where there is a head."""
    n = len(delta_NxRxC) - self.n_merged
    changed_W, found = self._entries(delta_NxRxC, n, out_dtype)
    if head is not None:
      delta_NxRxC, head = another_pass(
        _first(delta_NxRxC, n), jax.tree.map(lambda x: x[:n], head)
      )
      found |= _geometry(delta_NxRxC, head) | {
        'energy_NxE': jnp.stack(
          [_ritz_energy(delta_NxRxC[i], head.ritz_MxC[i]) for i in range(n)]
        ),
        'sample_NxBxB': _sample(delta_NxRxC),
      }
      if self.exact_side is not None:
        exact = min(delta_NxRxC.shape) <= self.exact_side
        delta_NxRxC, head = another_pass(delta_NxRxC, head)
        found |= _whole_spectra(delta_NxRxC, head, exact)
    square_W = jnp.diagonal(found['gram_WxW'])
    none = jnp.float32(0)
    return Sums(square_W, changed_W, none, none), found

  def _entries(
    self, delta_WxRxC: TaskVectors, n: int, out_dtype: str
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One pass: inner products and counts of entries."""
    w = len(delta_WxRxC)
    d = [delta_WxRxC[i] for i in range(w)]
    base_RxC = widen(delta_WxRxC.base_RxC)
    pairs = list(itertools.combinations_with_replacement(range(w), 2))
    over = [jnp.abs(x) > jnp.float32(self.threshold) for x in d[:n]]
    together = sum(m.astype(jnp.int32) for m in over) >= 2
    up = sum((x > 0).astype(jnp.int32) for x in d[:n])
    down = sum((x < 0).astype(jnp.int32) for x in d[:n])
    counted = {
      'changed': [x != 0 for x in d],
      'over_N': over,
      'shared_N': [m & together for m in over],
      'below_N': [_below_step(x, base_RxC, out_dtype) for x in d[:n]],
      'several': [up + down >= 2],
      'conflict': [(up > 0) & (down > 0)],
    }
    flat = [mask for masks in counted.values() for mask in masks]
    rows = row_sums(
      [d[i] * d[j] for i, j in pairs]
      + [base_RxC * base_RxC]
      + [mask.astype(jnp.float32) for mask in flat]
    )
    at = {pair: t for t, pair in enumerate(pairs)}
    order = [at[min(i, j), max(i, j)] for i in range(w) for j in range(w)]
    sums = jnp.stack(rows[: len(pairs) + 1]).sum(1)
    # A row's count is exact in float32, that of a matrix may not be.
    counts = jnp.stack(rows[len(pairs) + 1 :]).astype(jnp.int32).sum(1)
    found = {'gram_WxW': sums[jnp.array(order)].reshape(w, w), 'base_sq': sums[-1]}
    start = 0
    for name, masks in counted.items():
      part = counts[start : start + len(masks)]
      found[name] = part if name.endswith('_N') or name == 'changed' else part[0]
      start += len(masks)
    return found.pop('changed'), found


def _below_step(d_RxC: jax.Array, base_RxC: jax.Array, out_dtype: str) -> jax.Array:
  """Where 0 < |D| < the spacing of the output dtype at W_0, by exponents.

  2^(e - p) for W_0 in [2^e, 2^(e+1)), p stored bits of mantissa, and e at least the
  dtype's smallest. Compared as bits, which order as positive numbers do. Spacings that
  float32 has only as subnormal numbers count as zero.
  """
  info: Any = jnp.finfo(DTYPES[out_dtype])
  bits_RxC = jax.lax.bitcast_convert_type(base_RxC, jnp.int32)
  exponent_RxC = jnp.maximum((bits_RxC >> 23) & 0xFF, int(info.minexp) + 127)
  step_RxC = jnp.maximum(exponent_RxC - int(info.nmant), 0) << 23
  size_RxC = jax.lax.bitcast_convert_type(jnp.abs(d_RxC), jnp.int32)
  return (size_RxC > 0) & (size_RxC < step_RxC)


def _geometry(delta_NxRxC: TaskVectors, head: Head) -> dict[str, jax.Array]:
  """Gram matrices of heads and residuals, and the paper's scalars of them."""
  measured = resmerge.measure(delta_NxRxC, head, params=_GATE)
  _, stats = resmerge.update(
    measured, *resmerge.rank_one_terms(head), family=None, params=_GATE
  )
  names = ('s_R', 'c_R', 'S_H', 'norm_R', 'norm_H')
  return {
    **{name: stats[name] for name in names},
    **{name: measured[name] for name in ('gram_R_NxN', 'gram_H_NxN', 'norm_sum_R')},
  }


def _ritz_energy(delta_RxC: jax.Array, ritz_ExC: jax.Array) -> jax.Array:
  """||D v||^2 of the vectors the solver ended with: sigma_j^2, or less."""
  y_RxE = dot('rc,ec->re', delta_RxC, ritz_ExC)
  return (y_RxE * y_RxE).sum(0)


def _sample(delta_NxRxC: TaskVectors) -> jax.Array:
  """Entries at evenly spaced rows and columns, NxBxB, or all of a smaller matrix."""
  rows, cols = (
    np.linspace(0, size - 1, min(SAMPLE, size)).astype(np.int32)
    for size in delta_NxRxC.shape
  )
  here = dataclasses.replace(
    delta_NxRxC,
    base_RxC=delta_NxRxC.base_RxC[rows][:, cols],
    experts_NxRxC=delta_NxRxC.experts_NxRxC[:, rows][:, :, cols],
  )
  return jnp.stack([here[i] for i in range(len(here))])


def _whole_spectra(
  delta_NxRxC: TaskVectors, head: Head, exact: bool
) -> dict[str, jax.Array]:
  """Of each expert in turn, as a Gram matrix may be as large as the task vector."""

  def one(of_expert: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
    expert_RxC, v_KxC = of_expert
    delta_RxC = delta_NxRxC.difference(expert_RxC)
    if exact:
      return {'spectrum_NxS': spectrum(delta_RxC)}
    return tridiagonals(delta_RxC, v_KxC)

  return jax.lax.map(one, (delta_NxRxC.experts_NxRxC, head.v_KxC))


def _first(delta_WxRxC: TaskVectors, n: int) -> TaskVectors:
  return dataclasses.replace(delta_WxRxC, experts_NxRxC=delta_WxRxC.experts_NxRxC[:n])
