"""NaN, Inf and overflow, found while the weights go through."""

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.errors import InputError
from resmerge_jax.host_float import to_float32
from resmerge_jax.pipeline.kernels import Merged
from resmerge_jax.pipeline.staging import Staged
from resmerge_jax.plan.stacks import Step


def check_merged(
  group: ExpertGroup, step: Step, merged: Merged, inputs: Staged
) -> None:
  """Checks a computed step, by its sums: a finite sum of squares has finite terms.

  Raises:
    InputError: naming every source and tensor with NaN or Inf, or every tensor whose
      update or result leaves the range of its dtype.
  """
  sums = merged.sums
  squares_LxS = np.hstack(
    [sums.delta_sq_LxN, sums.update_sq_L[:, None], sums.loss_sq_L[:, None]]
  )
  suspect = np.flatnonzero(~np.isfinite(squares_LxS[: len(step.names)]).all(1))
  if suspect.size:
    sources = {i: inputs.source(i) for i in range(len(group.sources))}
    _check_inputs(group, step, sources, suspect)
    _check_output(step, merged.out_LxRxC, suspect)
    raise InputError(
      'updates too large for float32 (their squares overflow)',
      [step.names[layer] for layer in suspect],
      why='norms and heads of such a matrix cannot be computed',
      fix='look at the experts: weights of this size are the sign of a broken training',
    )


def check_copied(
  group: ExpertGroup, step: Step, base_LxRxC: np.ndarray, out_LxRxC: np.ndarray
) -> None:
  """Checks floating tensors that are copied from the base. Raises InputError."""
  layers = np.arange(len(step.names))
  _check_inputs(group, step, {0: base_LxRxC}, layers)
  _check_output(step, out_LxRxC, layers)


def _check_inputs(
  group: ExpertGroup, step: Step, sources: dict[int, np.ndarray], layers: np.ndarray
) -> None:
  bad = [
    f'{"expert" if i else "base"} {group.sources[i].id!r}: {step.names[layer]}'
    for layer in layers
    for i, source_LxRxC in sources.items()
    if not _finite(step, source_LxRxC[layer])
  ]
  if bad:
    raise InputError(
      'NaN or Inf in the weights',
      bad,
      why='one such number spreads over the whole merged matrix',
      fix='take a checkpoint from before training diverged; nothing was written',
    )


def _check_output(step: Step, out_LxRxC: np.ndarray, layers: np.ndarray) -> None:
  bad = [step.names[at] for at in layers if not _finite(step, out_LxRxC[at])]
  if bad:
    raise InputError(
      f'merged values exceed the range of {step.stack.out_dtype}',
      bad,
      fix='pass --output_dtype=bfloat16 or float32; nothing was written',
    )


def _finite(step: Step, padded_RxC: np.ndarray) -> bool:
  rows = padded_RxC[: step.row_stop - step.row_start]
  return bool(np.isfinite(to_float32(rows)).all())
