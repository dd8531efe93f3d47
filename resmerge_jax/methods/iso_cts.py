"""ISO-CTS (Marczak et al. 2025, arXiv 2502.04959): isotropic, common and task spaces.

As ISO-C, but only the leading directions of the summed update W stay. In place of the
rest come the leading directions of what each expert has outside of those.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.krylov import Head
from resmerge_jax.linalg.short_side import Blocks, grams, summed
from resmerge_jax.linalg.spectrum import Spectrum, between_polars, spectrum
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods import spectral
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class IsoCts:
  """As IsoC; `common_fraction` of the directions are those of W."""

  scale: float = 1.0
  common_fraction: float = 0.8
  scope: Literal['matrices', 'hidden'] = 'matrices'

  def __post_init__(self) -> None:
    fraction_ok = 0 <= self.common_fraction <= 1
    fraction = (fraction_ok, 'a number in [0, 1]')
    check_params('iso_cts', self, common_fraction=fraction, **spectral.checks(self))

  def split(self, rank: int, n: int) -> tuple[int, int]:
    """(common directions, directions per expert): c + N per = rank.

    The rest after the fraction is shared out evenly, halves rounded to even; what that
    leaves over goes back to the common part.

    Raises:
      InputError: if rounding up takes more directions than there are.
    """
    per_task = round((rank - int(rank * self.common_fraction)) / n)
    common = rank - per_task * n
    if common < 0:
      raise InputError(
        f'iso_cts.common_fraction: got {self.common_fraction!r}, which leaves '
        f'{common} common directions for rank {rank} and {n} experts',
        fix='take a larger fraction',
      )
    return common, per_task


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: IsoCts,
) -> tuple[Dense, Stats]:
  """s polar([U_1 .. U_N, U_c]) polar([V_1 .. V_N, V_c])^T.

  U_c, V_c: leading c triplets of W. U_i, V_i: leading ones of D_i - U_c U_c^T D_i.
  s: mean of all their singular values. Missing and repeated directions: as in `tsv`.
  """
  n, blocks = len(delta_NxRxC), Blocks(delta_NxRxC)
  c, per_task = params.split(blocks.short, n)
  sum_SxS, gram_NxSxS, cross_NxSxS = _products(blocks)
  common = spectrum(sum_SxS, lambda: blocks.triangle(summed), c)
  parts = _outside(blocks, gram_NxSxS, cross_NxSxS, common)
  tasks = jax.lax.map(
    lambda part: spectrum(
      part.gram_SxS,
      lambda: blocks.triangle(functools.partial(_rows_outside, part)),
      per_task,
      top=part.top,
    ),
    parts,
  )
  own_NxSxK = parts.keep_SxS @ tasks.to_left
  of_sum_SxM = jnp.hstack([*(-parts.moved_SxS @ tasks.to_left), common.to_left])

  def long(x_NxBxS: jax.Array) -> jax.Array:
    own = [x_NxBxS[i] @ own_NxSxK[i] for i in range(n)]
    of_common = jnp.zeros((x_NxBxS.shape[1], c))
    return jnp.hstack([*own, of_common]) + summed(x_NxBxS) @ of_sum_SxM

  short_SxM = jnp.hstack([*tasks.v_SxM, common.v_SxM])
  level = (tasks.sigma_M.sum() + common.sigma_M.sum()) / blocks.short
  levels_M = jnp.full(blocks.short, params.scale * level)
  error = jnp.maximum(common.error, tasks.error.max())
  update_RxC, error, complete = between_polars(blocks, long, short_SxM, levels_M, error)
  stats = spectral.outcome(level, complete & common.complete & tasks.complete, error)
  return Dense(update_RxC), stats | {'level': jnp.float32(level)}


class _Part(NamedTuple):
  """What an expert has outside the left space of U_c: rows X_i keep - W moved.

  `gram` is its Gram matrix, `top` bounds the size at which that was rounded. A stack
  of all experts' has a leading axis N.
  """

  expert: jax.Array
  gram_SxS: jax.Array
  keep_SxS: jax.Array
  moved_SxS: jax.Array
  top: jax.Array


def _rows_outside(part: _Part, x_NxBxS: jax.Array) -> jax.Array:
  return x_NxBxS[part.expert] @ part.keep_SxS - summed(x_NxBxS) @ part.moved_SxS


def _products(blocks: Blocks) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of the turned matrices: W^T W, the X_i^T X_i, and where X_i = D_i the W^T X_i."""

  def terms(x_NxBxS: jax.Array) -> tuple[jax.Array, jax.Array]:
    w_BxS = summed(x_NxBxS)
    with_sum = [w_BxS] if blocks.wide else x_NxBxS
    return grams(x_NxBxS), jnp.stack([w_BxS.T @ x_BxS for x_BxS in with_sum])

  gram_NxSxS, cross_NxSxS = blocks.sum(terms)
  return cross_NxSxS.sum(0), gram_NxSxS, cross_NxSxS


def _outside(
  blocks: Blocks, gram_NxSxS: jax.Array, cross_NxSxS: jax.Array, common: Spectrum
) -> _Part:
  """D_i - U_c U_c^T D_i for all experts.

  U_c is V of the turned W where D_i was turned (wide). Else U_c = W V / sigma, which
  gives W times V sigma^-2 V^T (W^T D_i).
  """
  n, s = gram_NxSxS.shape[:2]
  keep_SxS, moved_NxSxS = jnp.eye(s), jnp.zeros((n, s, s))
  if blocks.wide:
    keep_SxS -= common.v_SxM @ common.v_SxM.T
    outside_NxSxS = keep_SxS @ gram_NxSxS @ keep_SxS
  else:
    moved_NxSxS = common.to_left @ common.to_left.T @ cross_NxSxS
    outside_NxSxS = gram_NxSxS - cross_NxSxS.swapaxes(1, 2) @ moved_NxSxS
  return _Part(
    expert=jnp.arange(n),
    gram_SxS=outside_NxSxS,
    keep_SxS=jnp.broadcast_to(keep_SxS, (n, s, s)),
    moved_SxS=moved_NxSxS,
    top=jnp.sqrt(jnp.linalg.norm(gram_NxSxS, axis=(1, 2))),
  )


METHOD = Method(
  name='iso_cts',
  source='Marczak et al. 2025, arXiv 2502.04959 (ISO-CTS)',
  params=IsoCts,
  merge=merge,
  branches=spectral.BRANCHES,
  float64=True,
  gets=lambda params: params.scope,
)
