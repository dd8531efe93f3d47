"""Retention: the shortest update that keeps each expert's own component.

A method of this project (docs/retention.md). With G_ij = <D_i, D_j>:

  a = argmin over 0 <= a_i <= 1 of 1/2 a^T (G + tau diag G) a - a^T diag(G)
  U = sum_i a_i D_i

a_i = 0 for an unchanged expert. The update is `LowRank` with `a_N` alone, so it costs a
task arithmetic and a Gram matrix.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.box import minimum_in_box, slack
from resmerge_jax.linalg.gram import gram
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.sphere import cosines, norms
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import (
  Context,
  Findings,
  LowRank,
  Stats,
  TensorFacts,
  Totals,
  check_params,
  combination,
)
from resmerge_jax.methods.gram_groups import GROUPS, Group, grams, grouped_method
from resmerge_jax.types import Family

# 'inside': 0 < a_i < 1 for all experts that changed; 'bounded': not so for some.
BRANCHES = ('inside', 'bounded', 'zero')
INSIDE, BOUNDED, ZERO = range(3)
LEAST_TAU = 0.01  # less, and the rounding of G chooses between experts that are alike


@dataclasses.dataclass(frozen=True)
class Retention:
  """`tau`: what an expert may lose, 1 / (1 + tau) of it is kept where none overlap.

  `group`: what shares a Gram matrix. `rescale`: U times 1 + tau, which gives experts that
  do not overlap back whole, and lengthens what agrees.
  """

  tau: float = 0.4
  group: Group = 'tensor'
  rescale: bool = False

  def __post_init__(self) -> None:
    check_params(
      'retention',
      self,
      tau=(LEAST_TAU <= self.tau < math.inf, f'a finite number, {LEAST_TAU} or more'),
      group=(self.group in GROUPS, ' | '.join(GROUPS)),
      rescale=(isinstance(self.rescale, bool), 'True | False'),
    )


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,
  family: Family | None,  # noqa: ARG001
  params: Retention,
) -> tuple[LowRank, Stats]:
  """sum_i a_i D_i, from the Gram matrix of the tensor or of its group.

  The record: `a`; `retained`, <U, D_i> / ||D_i||^2 over what shares the Gram matrix;
  `kkt`, see `coefficients`.
  """
  own = params.group == 'tensor'
  gram_NxN = gram(delta_NxRxC) if own else context.found['gram_NxN']
  a_N, stats = coefficients(gram_NxN, params.tau)
  factor = 1 + params.tau if params.rescale else 1.0
  stats['retained'] *= factor
  return combination(factor * a_N, delta_NxRxC), stats


def coefficients(gram_NxN: jax.Array, tau: float) -> tuple[jax.Array, Stats]:
  """a (float32 N), and the record.

  Solved for b_i = a_i ||D_i|| in units of the largest norm, so that sizes of tensors and
  experts do not matter: cosines in place of G, 0 <= b_i <= ||D_i||. `kkt` is how far a
  step along the gradient, back into the box, would still move b. The rounding of G and
  of the solution leave b within 1e-6 / tau (measured: 2e-7 / tau) for up to 16 experts.
  Norms below 1e-19 are not held by float32 sums of squares, and count as zero.
  """
  norm_N = norms(gram_NxN)
  largest = norm_N.max()
  most_N = norm_N / jnp.where(largest > 0, largest, 1.0)
  exists_N = most_N > 0
  cos_NxN = cosines(gram_NxN)
  ridge_NxN = cos_NxN + tau * jnp.eye(len(most_N), dtype=jnp.float32)
  b_N = minimum_in_box(ridge_NxN, most_N, most_N)
  size_N = jnp.where(exists_N, most_N, 1.0)
  bounded = (exists_N & ((b_N <= 0) | (b_N >= most_N))).any()
  branch = jnp.where(bounded, BOUNDED, INSIDE)
  return b_N / size_N, {
    'a': b_N / size_N,
    'retained': (cos_NxN * b_N).sum(1) / size_N,
    'kkt': slack(ridge_NxN, most_N, most_N, b_N),
    'branch': jnp.where(exists_N.any(), branch, ZERO).astype(jnp.int32),
  }


def finish(
  totals: Totals,
  facts: Mapping[str, TensorFacts],
  params: Retention,
  before: Findings,  # noqa: ARG001
) -> Findings:
  """The Gram matrix of each tensor's group."""
  found: dict[str, Mapping[str, np.ndarray]] = {}
  for names, gram_NxN in grams(totals, facts, params.group):
    found |= {name: {'gram_NxN': gram_NxN.astype(np.float32)} for name in names}
  return found


METHOD = grouped_method(
  name='retention',
  source='this project, docs/retention.md',
  params=Retention,
  merge=merge,
  branches=BRANCHES,
  finish=finish,
)
