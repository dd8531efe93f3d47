"""Merging in-memory state dicts: the same code path as folders, without files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.group import check_group
from resmerge_jax.checkpoint.memory import MemoryReader, memory_checkpoint
from resmerge_jax.config import (
  choose,
  make_posts,
  merge_rules,
  on_host,
  outside_of,
)
from resmerge_jax.config_checks import check_choices, check_experts, check_rules
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.parameters import make_method
from resmerge_jax.pipeline.chips import device_facts
from resmerge_jax.pipeline.masks import with_masks
from resmerge_jax.pipeline.stream import stream
from resmerge_jax.pipeline.work import Work
from resmerge_jax.plan.plan import make_plan
from resmerge_jax.plan.rules import Rule, as_weights
from resmerge_jax.plan.stacks import Step
from resmerge_jax.sharding import merge_devices
from resmerge_jax.types import DTYPES


@dataclasses.dataclass(frozen=True)
class MergeResult:
  """Merged arrays by name (numpy, bfloat16 as ml_dtypes) and a record per tensor."""

  tensors: dict[str, np.ndarray]
  records: list[dict[str, Any]]
  warnings: tuple[str, ...]


class _ArraySink:
  """Collects written bytes in one array per tensor."""

  def __init__(self, tensors: dict[str, np.ndarray]):
    self._bytes = {
      name: array.reshape(-1).view(np.uint8) for name, array in tensors.items()
    }

  def write(self, name: str, offset_bytes: int, data: np.ndarray) -> None:
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    self._bytes[name][offset_bytes : offset_bytes + raw.size] = raw

  def finish(self, step: Step, numbers: Any) -> None:
    """Nothing to make durable."""


def merge_state_dicts(
  base: Mapping[str, Any],
  experts: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]],
  method: str = 'resmerge',
  params: Any = None,
  output_dtype: str = 'base',
  seed: int = 0,
  weights: Sequence[float] | None = None,
  rules: Sequence[Rule | Mapping[str, Any]] | None = None,
  outside: Mapping[str, Any] | TaskArithmetic | None = None,
  post: Sequence[Any] = (),
) -> MergeResult:
  """Merges state dicts name -> array (numpy, ml_dtypes or jax arrays).

  Args:
    experts: a sequence, or a mapping id -> state dict.
    params: the method's dataclass, or a mapping of its fields.
    output_dtype: 'base' (each tensor's own), 'bfloat16', 'float16' or 'float32'.
    weights: one per expert, for methods that take them.
    rules: which tensors the method gets; None: as it declares.
    outside: task arithmetic of the other tensors; None: their mean.
    post: post-processors in their order, pairs such as ('liti', {'eta': 0.5}).

  Raises:
    InputError: names, shapes, dtypes, parameters; NaN or Inf in the weights.
  """
  named = dict(experts) if isinstance(experts, Mapping) else {
    f'expert_{i}': expert for i, expert in enumerate(experts)
  }  # fmt: skip
  method_params = make_method(method, params)
  weights = None if weights is None else as_weights(weights)
  check_choices(output_dtype, 'error', seed)
  check_experts(len(named), None, weights, method_params)
  group = check_group(
    memory_checkpoint(base, 'base'),
    [memory_checkpoint(expert, id) for id, expert in named.items()],
  )
  rest = make_method('task_arithmetic', outside) if outside else None
  rest = outside_of(method_params, rest, len(named))
  # Each of several processes makes all of it: there is no place that they share.
  posts, table = make_posts(post), merge_rules(rules, method_params)
  check_rules(table, len(named))
  devices = merge_devices(own=True, host=on_host(method_params, table, posts))
  plan = make_plan(
    group,
    table,
    choose=choose(method_params, rest, posts, len(named)),
    output_dtype=output_dtype,
    devices=device_facts(devices),
  )
  plan = with_masks(plan, group)
  tensors = {
    name: np.empty(ref.shape, DTYPES[ref.dtype])
    for name, ref in plan.layout.where.items()
  }
  records, _ = stream(
    Work(
      plan=plan,
      group=group,
      readers=[
        MemoryReader(source, id) for id, source in (('base', base), *named.items())
      ],
      sink=_ArraySink(tensors),
      weights=weights or (1.0,) * len(named),
      seed=seed,
      devices=devices,
      alone=True,
    )
  )
  return MergeResult(
    tensors={name: tensors[name] for name in base},
    records=records.finish(),
    warnings=(*plan.warnings, *records.twins()),
  )
