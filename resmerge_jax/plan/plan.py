"""The plan of a merge: everything that headers tell, before a weight is read."""

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.names import is_buffer
from resmerge_jax.errors import InputError
from resmerge_jax.plan.accelerators import Accelerators, Cpu
from resmerge_jax.plan.adapter_warnings import adapter_warnings
from resmerge_jax.plan.build_stacks import build_stacks, build_steps
from resmerge_jax.plan.layout import DEFAULT_SHARD_SIZE, OutputLayout, lay_out
from resmerge_jax.plan.orbax_files import FOLDER, joined, lay_out_orbax
from resmerge_jax.plan.rules import ABSENT, Rule, assign, traps
from resmerge_jax.plan.stacks import Choose, Chosen, Stack, Step
from resmerge_jax.plan.step_sizes import DEFAULT_BUDGET, peak_memory, program_bytes
from resmerge_jax.types import TensorRef

OUTPUT_CODES = {'bfloat16': 'BF16', 'float16': 'F16', 'float32': 'F32'}


@dataclasses.dataclass(frozen=True)
class Given:
  """What a file of the user says of single tensors, beside their rules.

  `arrays`: what a method gets of a matrix, by name. `weights`: one per expert for a
  tensor, in the place of the merge's.
  """

  file: str = ''
  sha256: str = ''
  arrays: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  weights: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MergePlan:
  """What will be read, computed and written; sizes in bytes."""

  table: tuple[Rule, ...]
  rules: Mapping[str, Rule]
  stacks: tuple[Stack, ...]
  steps: tuple[Step, ...]
  layout: OutputLayout
  warnings: tuple[str, ...]
  budget: int
  devices: Accelerators | Cpu = Cpu()  # noqa: RUF009 (frozen)
  given: Given = Given()
  settings: int = 1  # of a sweep

  @property
  def bytes_read(self) -> int:
    return sum(step.nbytes * (1 + step.stack.chosen.scans) for step in self.steps)

  @property
  def bytes_written(self) -> int:
    return self.layout.nbytes

  @property
  def peak_memory(self) -> int:
    programs = program_bytes(self.stacks, self.settings)
    return programs + peak_memory(self.stacks, self.devices)

  @property
  def rule_counts(self) -> dict[Rule, int]:
    """How many tensors fall under each rule of the table, in its order."""
    counts = collections.Counter(self.rules.values())
    return {rule: counts[rule] for rule in self.table}

  def to_json(self) -> dict[str, Any]:
    """The plan as plain data (`tools.plan --json`)."""
    return {
      'fingerprint': self.fingerprint,
      'bytes_read': self.bytes_read,
      'bytes_written': self.bytes_written,
      'peak_memory_bytes': self.peak_memory,
      'memory_budget_bytes': self.budget,
      'n_steps': len(self.steps),
      'warnings': list(self.warnings),
      'rules': [
        {**dataclasses.asdict(rule), 'tensors': count}
        for rule, count in self.rule_counts.items()
      ],
      'stacks': [_plain(stack) for stack in self.stacks],
      'files': [
        {'name': shard.name, 'bytes': shard.nbytes, 'tensors': len(shard.tensors)}
        for shard in self.layout.files
      ],
      'tensors': {
        name: {
          'rule': rule.action,
          'file': self.layout.where[name].file,
          'dtype': self.layout.where[name].dtype,
          'shape': list(self.layout.where[name].shape),
        }
        for name, rule in self.rules.items()
      },
    }

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 over every decision of the plan and the place of every output byte."""
    numbers = {id(stack): i for i, stack in enumerate(self.stacks)}
    text = json.dumps(
      [
        [_plain(stack) for stack in self.stacks],
        [
          (numbers[id(s.stack)], s.names[0], s.row_start, s.row_stop, s.present)
          for s in self.steps
        ],
        [dataclasses.asdict(r) for refs in self.layout.places.values() for r in refs],
      ],
      sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(stack: Stack) -> dict[str, Any]:
  """The stack as JSON knows it; parameters go with the name of their class."""
  how = stack.chosen
  named = [
    (type(p).__name__, dataclasses.asdict(p)) for p in (how.method, *how.post) if p
  ]
  fields = dataclasses.asdict(dataclasses.replace(stack, chosen=Chosen(None)))
  del fields['swept']  # a setting of a sweep is the same merge as by itself
  return {**fields, 'chosen': named}


def make_plan(
  group: ExpertGroup,
  rules: tuple[Rule, ...],
  *,
  choose: Choose,
  output_dtype: str,
  max_shard_size: int | None = None,
  output_format: str = 'safetensors',
  orbax_layout: str = 'hf',
  budget: int | None = None,
  devices: Accelerators | Cpu = Cpu(),  # noqa: B008 (frozen)
  settings: int = 1,
) -> MergePlan:
  """The plan of merging `group`. Reads nothing.

  Args:
    choose: how the tensors of a rule are merged.
    output_dtype: 'base' or a name of OUTPUT_CODES; integers and buffers keep their dtype.
    output_format: one of OUTPUT_FORMATS, and the tree of an Orbax checkpoint.
    budget: bytes; None takes 2 GiB, or what the largest matrix needs; on accelerators
      what the steps need that suit their memory.
    devices: what computes.
    settings: of the sweep, if this is the plan of one of them.

  Raises:
    InputError: a tensor that no rule covers; a budget that is too small; a model that
      has no such tree.
  """
  out = {}
  for name, ref in group.base.tensors.items():
    code = output_code(ref, output_dtype)
    out[name] = dataclasses.replace(ref, dtype=code, shape=group.out_shape(name))
  layout = lay_out_as(
    group.base, tuple(out.values()), output_format, orbax_layout, max_shard_size
  )
  stored = tuple(group.base.tensors.values())
  assigned = assign(stored, rules)
  if nowhere := [n for n in group.nowhere if assigned[n].action != 'base']:
    rules, assigned = (ABSENT, *rules), assigned | dict.fromkeys(nowhere, ABSENT)
  _check_even(group, assigned, choose)
  stacks = build_stacks(
    group,
    assigned,
    out,
    choose=choose,
    budget=budget,
    devices=devices,
    settings=settings,
  )
  needed = program_bytes(stacks, settings) + peak_memory(stacks, devices)
  return MergePlan(
    table=rules,
    rules=assigned,
    stacks=stacks,
    steps=build_steps(stacks, group),
    layout=layout,
    warnings=(
      *(warning for source in group.sources for warning in source.warnings),
      *group.warnings,
      *traps(stored, assigned),
      *adapter_warnings(group, assigned, out, choose),
    ),
    budget=budget if budget is not None else max(DEFAULT_BUDGET, needed),
    devices=devices,
    settings=settings,
  )


def output_code(ref: TensorRef, output_dtype: str) -> str:
  """The dtype of a tensor in an output; buffers are copied, `inv_freq` needs its bits."""
  if ref.is_float and not is_buffer(ref.name):
    return OUTPUT_CODES.get(output_dtype, ref.dtype)
  return ref.dtype


def lay_out_as(
  base: Checkpoint,
  tensors: tuple[TensorRef, ...],
  output_format: str,
  orbax_layout: str,
  max_shard_size: int | None = None,
) -> OutputLayout:
  """The files of an output in one or both formats.

  Args:
    base: where the tensors come from; its config tells of the model.
    max_shard_size: None keeps the base's files, or takes DEFAULT_SHARD_SIZE where it has
      no safetensors. Without safetensors it tells what one process writes alone.

  Raises:
    InputError: the model has no such tree.
  """
  if max_shard_size is None and base.tree is not None:
    max_shard_size = DEFAULT_SHARD_SIZE
  plain = lay_out(tensors, max_shard_size)
  if output_format == 'safetensors':
    return plain
  folder = FOLDER if output_format == 'both' else ''
  orbax = lay_out_orbax(tensors, orbax_layout, base.config, plain.group_of, folder)
  return joined(plain, orbax) if output_format == 'both' else orbax


def _check_even(group: ExpertGroup, rules: Mapping[str, Rule], choose: Choose) -> None:
  """A method of whole matrices cannot take vocabularies of different size."""
  uneven = [
    name for name in group.uneven if choose(rules[name], group.base.tensors[name]).whole
  ]
  if uneven:
    raise InputError(
      'the rules send tensors to the method whose rows differ between the checkpoints',
      uneven,
      why='it needs whole matrices of one shape',
      fix="give them action='task_arithmetic' in config.rules",
    )
