"""Experts for comparisons with other programs, as ours and as theirs."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods import dare
from resmerge_jax.methods.base import apply_update
from resmerge_jax.methods.table import method_of
from tests.methods import groups

N, ROWS, COLS = 3, 20, 17
KINDS = ('float32', 'bfloat16', 'coarse', 'zeros')


def weights_of(kind: str, n: int = N) -> tuple[np.ndarray, np.ndarray]:
  """Base RxC and experts NxRxC in float32; all but 'float32' fit bfloat16.

  bfloat16: updates near the rounding step, most are zero or tie. coarse: multiples of a
  power of two, of which a quarter cancel exactly. zeros: no update but one entry.
  """
  rng = np.random.default_rng(KINDS.index(kind))
  base_RxC = rng.standard_normal((ROWS, COLS)).astype(np.float32)
  if kind == 'float32':
    return base_RxC, base_RxC + groups.experts(n, ROWS, COLS, 0.7)
  if kind == 'bfloat16':
    moved = base_RxC + 0.004 * rng.standard_normal((n, ROWS, COLS))
    return tuple(
      x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (base_RxC, moved)
    )
  delta_NxRxC = rng.integers(-4, 5, (n, ROWS, COLS)) * 2.0**-6
  if kind == 'zeros':
    delta_NxRxC *= 0
    delta_NxRxC[0, 3, 4] = 0.5
  base_RxC = rng.integers(-8, 9, (ROWS, COLS)) * 2.0**-4
  return base_RxC.astype(np.float32), (base_RxC + delta_NxRxC).astype(np.float32)


def same_masks(monkeypatch: pytest.MonkeyPatch, density: float) -> None:
  """Makes theirs and ours drop the same entries, once."""
  import torch  # optional: who calls has it

  drawn = np.random.default_rng(0).random((N, ROWS, COLS)) < density
  queue = iter(drawn)
  monkeypatch.setattr(
    torch, 'bernoulli', lambda _: torch.from_numpy(next(queue).astype(np.float32))
  )
  monkeypatch.setattr(dare, 'drop_masks', lambda *_: drawn)


def ours(params: Any, base_RxC: np.ndarray, experts_NxRxC: np.ndarray, weights: Any):
  """The merged weights."""
  delta_NxRxC = TaskVectors(base_RxC, experts_NxRxC)
  update, _ = method_of(params).merge(
    delta_NxRxC,
    None,
    context=groups.context(len(experts_NxRxC), weights),
    family=None,
    params=params,
  )
  return base_RxC + np.asarray(apply_update(update, delta_NxRxC))
