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
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.short_side import Blocks, mirrored, summed
from resmerge_jax.linalg.spectrum import Spectrum, between_polars, spectrum
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods import spectral
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class IsoCts:
  """`scale`, `scope`: as in IsoC. `common_fraction` of the directions are those of W."""

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
  find = functools.partial(spectrum, missing=blocks.missing)
  common = find(sum_SxS, lambda: blocks.triangle(summed), c)
  parts = _outside(blocks, gram_NxSxS, cross_NxSxS, common)

  def own_spectrum(part: _Outside) -> Spectrum:
    def rows(x_NxBxS: jax.Array) -> jax.Array:
      common_BxC = summed(x_NxBxS) @ common.to_left
      return x_NxBxS[part.expert] @ part.keep_SxS - common_BxC @ part.inside_CxS

    return find(part.gram_SxS, lambda: blocks.triangle(rows), per_task, top=part.top)

  tasks = jax.lax.map(own_spectrum, parts)
  own_NxSxK = parts.keep_SxS @ tasks.to_left
  minus_NxSxK = common.to_left @ (parts.inside_CxS @ tasks.to_left)

  def long(x_NxBxS: jax.Array) -> jax.Array:
    to_left_SxC, own_, minus = (
      k.astype(x_NxBxS.dtype) for k in (common.to_left, own_NxSxK, minus_NxSxK)
    )
    w_BxS = summed(x_NxBxS)
    own = jnp.hstack([x_NxBxS[i] @ own_[i] - w_BxS @ minus[i] for i in range(n)])
    return jnp.hstack([own, w_BxS @ to_left_SxC])

  short_SxM = jnp.hstack([*tasks.v_SxM, common.v_SxM])
  level = (tasks.sigma_M.sum() + common.sigma_M.sum()) / blocks.short
  levels_M = jnp.full(blocks.short, params.scale * level)
  error = jnp.maximum(common.error, tasks.error.max())
  size = jnp.maximum(common.sigma_M.max(initial=0.0), parts.top.max())
  weakest = jnp.maximum(
    common.inverse_M.max(initial=0.0), tasks.inverse_M.max(initial=0.0)
  )
  # What is outside U_c is orthogonal to it: on the left, or for X_i = D_i^T the right.
  settled = c if per_task else 0
  update_RxC, error, complete = between_polars(
    blocks,
    long,
    short_SxM,
    levels_M,
    error,
    size * weakest,
    settled=(0, settled) if blocks.wide else (settled, 0),
  )
  stats = spectral.outcome(level, complete & common.complete & tasks.complete, error)
  return Dense(update_RxC), stats | {'level': jnp.float32(level)}


class _Outside(NamedTuple):
  """D_i - U_c U_c^T D_i of an expert, turned: rows X_i keep - (W to_left) inside.

  `gram` is its Gram matrix, `top` the size at which that was rounded. A stack of all
  experts' has a leading axis N.
  """

  expert: jax.Array
  gram_SxS: jax.Array
  keep_SxS: jax.Array
  inside_CxS: jax.Array
  top: jax.Array


def _products(blocks: Blocks) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of the turned matrices: W^T W, the X_i^T X_i, and where X_i = D_i the W^T X_i."""

  def terms(x_NxBxS: jax.Array) -> tuple[jax.Array, jax.Array]:
    w_BxS = summed(x_NxBxS)
    if blocks.wide:
      return blocks.grams(x_NxBxS), blocks.gram(w_BxS)[None]
    return blocks.grams(x_NxBxS), jnp.stack([w_BxS.T @ x_BxS for x_BxS in x_NxBxS])

  gram_NxSxS, cross_NxSxS = blocks.sum(terms)
  return cross_NxSxS.sum(0), mirrored(gram_NxSxS), cross_NxSxS


def _outside(
  blocks: Blocks, gram_NxSxS: jax.Array, cross_NxSxS: jax.Array, common: Spectrum
) -> _Outside:
  """All experts without their part in the left space U_c.

  Where D_i was turned (wide), U_c is V of the turned W: the projection acts on the
  columns of X_i. Else U_c = W to_left, and `inside` is U_c^T D_i = to_left^T W^T D_i.
  """
  n, s = gram_NxSxS.shape[:2]
  keep_SxS = jnp.eye(s)
  if blocks.wide:
    keep_SxS -= common.v_SxM @ common.v_SxM.T
    inside_NxCxS = jnp.zeros((n, common.v_SxM.shape[1], s))
    outside_NxSxS = keep_SxS @ gram_NxSxS @ keep_SxS
  else:
    inside_NxCxS = common.to_left.T @ cross_NxSxS
    outside_NxSxS = gram_NxSxS - inside_NxCxS.swapaxes(1, 2) @ inside_NxCxS
  return _Outside(
    expert=jnp.arange(n),
    gram_SxS=outside_NxSxS,
    keep_SxS=jnp.broadcast_to(keep_SxS, (n, s, s)),
    inside_CxS=inside_NxCxS,
    top=jnp.sqrt(jnp.linalg.norm(gram_NxSxS, axis=(1, 2))),
  )


METHOD = Method(
  name='iso_cts',
  source='Marczak et al. 2025, arXiv 2502.04959 (ISO-CTS)',
  params=IsoCts,
  merge=merge,
  branches=spectral.BRANCHES,
  float64=True,
  block_scratch=lambda n: 60 * n + 40,
  gets=lambda params: params.scope,
  spans='sum',
)
