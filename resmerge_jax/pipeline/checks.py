"""What only weights can tell: NaN, Inf, overflow, a head that is not what it is taken for."""

from collections.abc import Mapping, Sequence

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.checkpoint.tied_head import check_ignored_head
from resmerge_jax.errors import EchoError, InputError
from resmerge_jax.host_float import to_float32
from resmerge_jax.pipeline.fetched import Fetched
from resmerge_jax.pipeline.staging import Staged
from resmerge_jax.plan.stacks import Step


def check_heads(group: ExpertGroup, readers: Sequence[Reader]) -> None:
  """Raises InputError where a head that is ignored as tied is not the embedding."""
  for i, ignored in group.ignored.items():
    check_ignored_head(group.sources[i], ignored, readers[i])


def check_merged(
  group: ExpertGroup, step: Step, fetched: Fetched, inputs: Staged
) -> None:
  """Checks a computed step, by its sums: a finite sum of squares has finite terms.

  Raises:
    InputError: naming every source and tensor with NaN or Inf, or every tensor whose
      update or result leaves the range of its dtype.
  """
  sums = fetched.found.sums
  squares_LxS = np.hstack(
    [sums.delta_sq_LxN, sums.update_sq_L[:, None], sums.loss_sq_L[:, None]]
  )
  suspect = np.flatnonzero(~np.isfinite(squares_LxS).all(1))
  if suspect.size:
    layers = [fetched.layers[at] for at in suspect]
    _check_inputs(group, step, inputs, layers)
    _check_output(step, {p.layer: p.out_RxC for p in fetched.pieces}, layers)
    if not _holds_all(step, inputs, layers):
      raise EchoError(
        'NaN or Inf in the weights, or updates too large for float32, in rows that '
        'another process reads',
        [step.names[layer] for layer in layers],
        fix='see the message of that process',
      )
    raise InputError(
      'updates too large for float32 (their squares overflow)',
      [step.names[layer] for layer in layers],
      why='norms and heads of such a matrix cannot be computed',
      fix='look at the experts: weights of this size are the sign of a broken training',
    )


def _holds_all(step: Step, inputs: Staged, layers: Sequence[int]) -> bool:
  """Whether this process has all rows of these layers, not only their sums."""
  n_rows = step.row_stop - step.row_start
  return all(
    sum(len(shard.rows) for shard in inputs.shards if layer in shard.layers) >= n_rows
    for layer in layers
  )


def check_copied(
  group: ExpertGroup, step: Step, inputs: Staged, out_LxRxC: np.ndarray
) -> None:
  """Checks floating tensors that are copied from the base. Raises InputError."""
  layers = list(range(len(step.names)))
  _check_inputs(group, step, inputs, layers)
  _check_output(step, dict(enumerate(out_LxRxC)), layers)


def _check_inputs(
  group: ExpertGroup, step: Step, inputs: Staged, layers: Sequence[int]
) -> None:
  bad = [
    f'{"expert" if i else "base"} {group.sources[i].id!r}: {step.names[layer]}'
    for layer in layers
    for i in range(step.stack.n_experts + 1)
    if not all(
      _finite(part[layer - shard.layers.start])
      for shard in inputs.shards
      if layer in shard.layers
      for part in (
        *([shard.source(i)] if i in shard.sources else []),
        *shard.factors(i),
      )
    )
  ]
  if bad:
    raise InputError(
      'NaN or Inf in the weights',
      bad,
      why='one such number spreads over the whole merged matrix',
      fix='take a checkpoint from before training diverged; nothing was written',
    )


def _check_output(
  step: Step, out_RxC: Mapping[int, np.ndarray], layers: Sequence[int]
) -> None:
  bad = [step.names[at] for at in layers if at in out_RxC and not _finite(out_RxC[at])]
  if bad:
    raise InputError(
      f'merged values exceed the range of {step.stack.out_dtype}',
      bad,
      fix='pass --output_dtype=bfloat16 or float32; nothing was written',
    )


def _finite(rows_RxC: np.ndarray) -> bool:
  return bool(np.isfinite(to_float32(rows_RxC)).all())
