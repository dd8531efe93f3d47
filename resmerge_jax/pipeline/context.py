"""What a method may know of each tensor of a step beside its weights, as arrays."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.methods.base import Context, Findings
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.plan.rules import (
  depth_of,
  layer_count,
  layer_counts,
  layer_number,
  weights_at,
)
from resmerge_jax.plan.stacks import Step


def step_context(
  step: Step,
  layers: int,
  plan: MergePlan,
  group: ExpertGroup,
  weights: Sequence[Any],
  seed: int,
  found: Findings,
) -> Context:
  """NumPy arrays with `layers` entries each; those of padding repeat the first tensor's.

  Args:
    weights: of the merge, per expert; a rule's own replace them.
    found: of every tensor of the step, or nothing.
  """
  names = [*step.names, *step.names[:1] * (layers - len(step.names))]
  present = np.ones(len(weights), np.float32)
  if group.vocab == 'pad':  # experts without these rows have no say in them
    present[np.not_equal(step.present, step.stack.present)[1:]] = 0
  ids = [expert.id for expert in group.experts]
  per_tensor = [found[name] for name in names] if found else []
  places = [plan.layout.place(name) for name in names]
  known = layer_counts(group.names)
  counts = [layer_count(known, name) for name in names]
  resolved = [
    plan.given.weights.get(ref.name)
    or weights_at(plan.rules[ref.name].weights or weights, depth_of(ref.name, count))
    for (ref, _), count in zip(places, counts, strict=True)
  ]
  arrays: dict[str, Any] = {
    'weights_N': present * np.array(resolved, np.float32),
    'keys_Nx2': np.stack(
      [[random_key(seed, id, ref.name) for id in ids] for ref, _ in places]
    ),
    'row_start': np.array([n + step.row_start for _, n in places], np.int32),
    'layer': np.array([layer_number(name) for name in names], np.int32),
    'n_layers': np.array(counts, np.int32),
    'found': {
      key: np.stack([of_one[key] for of_one in per_tensor])
      for key in (per_tensor[0] if per_tensor else {})
    },
  }
  return Context(**arrays)


@functools.lru_cache(maxsize=4096)
def random_key(seed: int, expert_id: str, name: str) -> tuple[np.uint32, np.uint32]:
  """A threefry key of an expert and a tensor: 64 bits of a SHA-256.

  It depends on nothing else, so neither order nor devices nor a resume change a draw.
  """
  digest = hashlib.sha256(f'{seed}\0{expert_id}\0{name}'.encode()).digest()
  first, second = np.frombuffer(digest[:8], np.dtype('<u4'))
  return np.uint32(first), np.uint32(second)
