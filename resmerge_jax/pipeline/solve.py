"""The heads of the experts of one matrix, solved on the devices."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.linalg.gram import another_pass
from resmerge_jax.linalg.head import Head, Ritz, head_of, ritz_size
from resmerge_jax.linalg.krylov import ritz_pairs
from resmerge_jax.linalg.passes import Formed, InBlocks, solves_in_blocks
from resmerge_jax.linalg.products import heads as heads_of_products
from resmerge_jax.linalg.task_vectors import Products, TaskVectors
from resmerge_jax.pipeline.sums import DeltaSums, delta_sums
from resmerge_jax.sharding import each


class Passes(NamedTuple):
  """How a program goes over its matrices."""

  at_once: bool  # all in one batch, not in turn
  row_shards: int  # devices that share the rows of one

  @property
  def in_blocks(self) -> bool:
    """Whether large ones are not formed."""
    return not self.at_once and self.row_shards == 1


class Solved(NamedTuple):
  """Heads of all experts, stacked, one per rank; `known` is what they have cost."""

  heads: tuple[Head, ...] = ()
  known: DeltaSums | None = None


@jax.enable_x64(False)  # also within programs of methods in float64
def solve_heads(
  ks: tuple[int, ...],
  passes: Passes,
  delta_NxRxC: TaskVectors | Products,
  start_PxC: jax.Array,
) -> Solved:
  """Heads of each rank in `ks` from one iteration per expert."""
  if isinstance(delta_NxRxC, Products):
    n_wanted = ritz_size(max(ks), min(delta_NxRxC.shape))
    found = heads_of_products(delta_NxRxC, ks, start_PxC, n_wanted)
    return Solved(jax.tree.map(lambda *of_experts: jnp.stack(of_experts), *found))

  short = min(delta_NxRxC.shape)
  known = delta_sums(*another_pass(delta_NxRxC))

  def solve_in_blocks(one: tuple[jax.Array, jax.Array]) -> Ritz:
    i, energy = one
    return ritz_pairs(InBlocks.of(delta_NxRxC, i), ks, start_PxC, energy)

  def solve(one: tuple[jax.Array, jax.Array]) -> Ritz:
    expert_RxC, energy = one
    # The barrier keeps XLA from widening the base once for all, at a pass's cost.
    base_RxC, expert_RxC = another_pass(delta_NxRxC.base_RxC, expert_RxC)
    here_NxRxC = dataclasses.replace(delta_NxRxC, base_RxC=base_RxC)
    delta = Formed(here_NxRxC.difference(expert_RxC), passes.row_shards)
    return ritz_pairs(delta, ks, start_PxC, energy)

  energy_N = known.square_N
  if passes.in_blocks and solves_in_blocks(*delta_NxRxC.shape):
    numbers_N = np.arange(len(delta_NxRxC))
    ritz_N = each(solve_in_blocks, (numbers_N, energy_N), passes.at_once)
  else:
    ritz_N = each(solve, (delta_NxRxC.experts_NxRxC, energy_N), passes.at_once)
  heads = tuple(
    jax.vmap(functools.partial(head_of, k=k, short=short))(ritz_N, energy=energy_N)
    for k in ks
  )
  return Solved(heads, known)
