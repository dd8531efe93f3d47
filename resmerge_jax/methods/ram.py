"""RAM, Reinforced Agent Merging (arXiv 2601.13572): shared entries averaged, own kept.

After the authors' public code (xiangchi-yuan/mrl, e2d930d), all five modes. An entry
of expert i has changed where |D_i| > threshold; n counts the experts that changed it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.gram import another_pass
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.order_statistic import counts_of_rows, kth_largest
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import (
  Context,
  Dense,
  Findings,
  Method,
  Scan,
  Stats,
  TensorFacts,
  Totals,
  check_params,
)
from resmerge_jax.types import Family

MODES = ('arm', 'arm-r', 'arm-r-v2', 'arm-ties', 'arm-unique')
SHARE = 3.0  # arm-unique divides by three, whatever N is


@dataclasses.dataclass(frozen=True)
class Ram:
  """RAM of the paper is `rescale` 1, RAM+ more; less than 1 counts as 1.

  `arm`: mean over the experts that changed an entry. `arm-r`, `arm-r-v2`: an entry
  that expert i alone changed is scaled by lambda_i = 1 + (rescale - 1) min(1, ratio);
  over the whole model, ratio is shared / changed entries of i, in v2 shared / unique.
  `arm-ties`: of the shared entries the largest tenth, with an elected sign.
  `arm-unique`: a third of what expert `target` alone changed.
  `threshold`: |D_i| above which expert i has changed an entry.
  `target`: which expert `arm-unique` is about, from 0.
  """

  mode: Literal['arm', 'arm-r', 'arm-r-v2', 'arm-ties', 'arm-unique'] = 'arm-r-v2'
  rescale: float = 1.05
  threshold: float = 1e-5
  target: int = 1

  def __post_init__(self) -> None:
    check_params(
      'ram',
      self,
      mode=(self.mode in MODES, ' | '.join(MODES)),
      rescale=(math.isfinite(self.rescale), 'a finite number'),
      threshold=(0 <= self.threshold < math.inf, 'a finite number, 0 or more'),
      target=(self.target >= 0, 'the index of an expert, from 0'),
    )

  @property
  def rescales(self) -> bool:
    """Whether lambda_i differs from 1, so that the model's entries must be counted."""
    return self.mode in ('arm-r', 'arm-r-v2') and self.rescale > 1


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: Ram,
) -> tuple[Dense, Stats]:
  """The update of one matrix, or of a block of its rows unless the mode is arm-ties.

  Raises:
    InputError: `target` is none of the N experts (arm-unique).
  """
  n = len(delta_NxRxC)
  changed, n_changed_RxC = _changed(delta_NxRxC, params)
  if params.mode == 'arm-unique':
    if expected := _expects(params, n):
      raise InputError(f'ram: got {n} experts, expected {expected}')
    alone_RxC = changed[params.target] & (n_changed_RxC == 1)
    third_RxC = delta_NxRxC[params.target] / SHARE
    return Dense(jnp.where(alone_RxC, third_RxC, 0.0)), {}
  if params.mode == 'arm-ties':
    return _ties(delta_NxRxC, params)
  if not params.rescales:
    return Dense(_mean(delta_NxRxC, jnp.ones(n), params)), {}
  scale_N = context.found['scale_N']
  return Dense(_mean(delta_NxRxC, scale_N, params)), {'scale': scale_N}


def _changed(
  delta_NxRxC: TaskVectors, params: Ram
) -> tuple[list[jax.Array], jax.Array]:
  """m_i per expert and n = sum_i m_i, float32."""
  n = len(delta_NxRxC)
  changed = [jnp.abs(delta_NxRxC[i]) > params.threshold for i in range(n)]
  return changed, sum((m.astype(jnp.float32) for m in changed), jnp.float32(0))


def _mean(delta_NxRxC: TaskVectors, scale_N: jax.Array, params: Ram) -> jax.Array:
  """(sum_i m_i D_i) / n; lambda_i D_i where only expert i changed; 0 where none."""
  changed, n_changed_RxC = _changed(delta_NxRxC, params)
  total_RxC = jnp.zeros(delta_NxRxC.shape)
  for i, changed_RxC in enumerate(changed):
    own_RxC = jnp.where(n_changed_RxC == 1, scale_N[i], 1.0) * delta_NxRxC[i]
    total_RxC += jnp.where(changed_RxC, own_RxC, 0.0)
  return total_RxC / jnp.maximum(n_changed_RxC, 1.0)


def _ties(delta_NxRxC: TaskVectors, params: Ram) -> tuple[Dense, Stats]:
  """arm, but on the d shared entries: prune per expert, elect a sign, average.

  Kept are |v_i| at or above the floor(0.9 d)-th smallest, v_i = m_i D_i; all where
  that is the 0-th or is zero.
  """

  def values(delta_NxRxC: TaskVectors) -> list[jax.Array]:
    changed, n_changed_RxC = _changed(delta_NxRxC, params)
    return [
      jnp.where((n_changed_RxC >= 2) & m, delta_NxRxC[i], 0.0)
      for i, m in enumerate(changed)
    ]

  n, (n_rows, n_cols) = len(delta_NxRxC), delta_NxRxC.shape
  (shared,) = counts_of_rows([_changed(delta_NxRxC, params)[1] >= 2]).sum(1)
  pruned = shared - (shared + 9) // 10  # floor(0.9 d) without overflow
  # What is not shared counts as 0, below everything: the rank from above is the same.
  least_N = kth_largest(delta_NxRxC, shared - pruned + 1, values)
  least_N = jnp.where(pruned > 0, _as_float(least_N), 0.0)

  delta_NxRxC, least_N = another_pass(delta_NxRxC, least_N)
  changed, n_changed_RxC = _changed(delta_NxRxC, params)
  shared_RxC = n_changed_RxC >= 2
  kept = [
    jnp.where(m & (jnp.abs(delta_NxRxC[i]) >= least_N[i]), delta_NxRxC[i], 0.0)
    for i, m in enumerate(changed)
  ]
  up_RxC = sum(jnp.maximum(v, 0.0) for v in kept)
  down_RxC = sum(jnp.maximum(-v, 0.0) for v in kept)
  sign_RxC = jnp.sign(up_RxC - down_RxC)
  agree_RxC = sum((v * sign_RxC > 0).astype(jnp.float32) for v in kept)
  mass_RxC = jnp.where(sign_RxC > 0, up_RxC, -down_RxC)
  elected_RxC = jnp.where(agree_RxC > 0, mass_RxC, 0.0) / jnp.maximum(agree_RxC, 1.0)
  update_RxC = jnp.where(
    shared_RxC, elected_RxC, _mean(delta_NxRxC, jnp.ones(n), params)
  )
  return Dense(update_RxC), {
    'shared': shared / (n_rows * n_cols),
    'least_kept': least_N,
  }


def _as_float(bits: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def measure(
  delta_NxRxC: TaskVectors,
  *,
  context: Context,  # noqa: ARG001
  params: Ram,
) -> dict[str, jax.Array]:
  """chg_i and ov_i: entries of expert i that changed, and those with n >= 2 of them."""
  changed, n_changed_RxC = _changed(delta_NxRxC, params)
  shared = [m & (n_changed_RxC >= 2) for m in changed]
  changed_N, shared_N = counts_of_rows([*changed, *shared]).sum(1).reshape(2, -1)
  return {'changed_N': changed_N, 'shared_N': shared_N}


def finish(
  totals: Totals,
  facts: Mapping[str, TensorFacts],  # noqa: ARG001
  params: Ram,
  before: Findings,  # noqa: ARG001
) -> Findings:
  """lambda_i from the counts of the whole model.

  An expert without a unique entry multiplies nothing by its lambda: v2 divides by
  zero there, here its ratio counts as 1. One that changed nothing has ratio 0.
  """
  changed_N, shared_N = totals['']['changed_N'], totals['']['shared_N']
  among_N = changed_N - shared_N if params.mode == 'arm-r-v2' else changed_N
  ratio_N = np.where(among_N > 0, shared_N / np.maximum(among_N, 1), changed_N > 0)
  scale_N = 1 + (params.rescale - 1) * np.minimum(ratio_N, 1.0)
  return {'': {'scale_N': scale_N.astype(np.float32)}}


def _expects(params: Ram, n: int) -> str | None:
  if params.mode == 'arm-unique' and params.target >= n:
    return f'more than target {params.target}, counted from 0'
  return None


def _scans(params: Ram) -> tuple[Scan, ...]:
  return (
    (Scan(measure, finish, whole_model=True, copies=True),) if params.rescales else ()
  )


METHOD = Method(
  name='ram',
  source='RAM, arXiv 2601.13572; code xiangchi-yuan/mrl',
  params=Ram,
  merge=merge,
  scratch=8,
  whole_matrix=lambda params: params.mode == 'arm-ties',
  scans=_scans,
  expects=_expects,
)
