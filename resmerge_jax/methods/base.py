"""What a merge method is: one pure function on one matrix, and what it returns."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from resmerge_jax.linalg.krylov import Head
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.types import Family

# einsum is the better kernel beyond this many rank-one terms; below it they fuse
# into the pass over the task vectors and cost nothing.
FUSED_TERMS = 8


class LowRank(NamedTuple):
  """sum_i a_i delta_i + sum_t w_t u_t v_t^T: applied in one fused pass."""

  a_N: jax.Array
  w_T: jax.Array
  u_TxR: jax.Array
  v_TxC: jax.Array


class Dense(NamedTuple):
  """An update that has no such form."""

  update_RxC: jax.Array


Update = LowRank | Dense
Stats = dict[str, jax.Array]  # scalars or small vectors for the tensor's record


class MergeFn(Protocol):
  def __call__(
    self,
    delta_NxRxC: TaskVectors,
    head: Head | None,
    *,
    weights_N: jax.Array,
    family: Family | None,
    params: Any,
  ) -> tuple[Update, Stats]:
    """The update to add to the base. `head` is stacked over experts (NxK...)."""


@dataclasses.dataclass(frozen=True)
class Method:
  """One entry of the table of methods.

  `head_rank(params)` is the number of leading triplets per expert that `merge`
  wants (0: none; the pipeline then computes no head). `branches` names the integer
  codes of the record's `branch`. `whole_matrix` is False where each row of the
  result depends on that row alone, so that matrices may go through in row blocks.
  """

  name: str
  source: str
  params: type
  merge: MergeFn
  head_rank: Callable[[Any], int] = lambda params: 0  # noqa: ARG005
  branches: tuple[str, ...] = ()
  takes_weights: bool = False
  whole_matrix: bool = True


def apply_update(update: Update, delta_NxRxC: TaskVectors) -> jax.Array:
  """The update as a float32 matrix RxC."""
  if isinstance(update, Dense):
    return update.update_RxC
  out_RxC = jnp.zeros(delta_NxRxC.shape)
  for i in range(len(delta_NxRxC)):
    out_RxC += update.a_N[i] * delta_NxRxC[i]
  n_terms = update.w_T.shape[0]
  if n_terms > FUSED_TERMS:
    return out_RxC + jnp.einsum(
      't,tr,tc->rc', update.w_T, update.u_TxR, update.v_TxC, precision='highest'
    )
  for t in range(n_terms):
    out_RxC += (update.w_T[t] * update.u_TxR[t])[:, None] * update.v_TxC[t][None, :]
  return out_RxC
