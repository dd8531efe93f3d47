"""NearSwap: take one expert's weights over where they are near the base's.

From the model card of alchemonaut/QuartetAnemoi-70B-t0.0001, as in mergekit 0.1.5: the
share of the expert is t / |D|, at most 1, so no entry moves by more than t.
"""

import dataclasses
import math

import jax.numpy as jnp

from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.base import Context, Dense, Method, Stats, check_params
from resmerge_jax.types import Family


@dataclasses.dataclass(frozen=True)
class NearSwap:
  """`t`: how far an entry may move."""

  t: float = 1e-4

  def __post_init__(self) -> None:
    check_params(
      'nearswap', self, t=(0 <= self.t < math.inf, 'a finite number, not negative')
    )


def merge(
  delta_NxRxC: TaskVectors,
  head: Head | None,  # noqa: ARG001
  *,
  context: Context,  # noqa: ARG001
  family: Family | None,  # noqa: ARG001
  params: NearSwap,
) -> tuple[Dense, Stats]:
  """min(1, t / |D|) D, which is D within [-t, t] and t sgn(D) outside.

  mergekit divides by no less than 1e-6; for a smaller t it moves entries less.
  """
  return Dense(jnp.clip(delta_NxRxC[0], -params.t, params.t)), {}


METHOD = Method(
  name='nearswap',
  source='alchemonaut 2024, huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001',
  params=NearSwap,
  merge=merge,
  whole_matrix=lambda params: False,  # noqa: ARG005
  expects=lambda params, n: None if n == 1 else '1 beside the base',  # noqa: ARG005
)
