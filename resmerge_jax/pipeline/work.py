"""What the loop over steps needs beside the plan, and where a process takes part."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.methods.base import Context, Findings
from resmerge_jax.pipeline.context import step_context
from resmerge_jax.pipeline.kernel_spec import (
  KernelSpec,
  RecipeUse,
  ScanAt,
  step_spec,
)
from resmerge_jax.pipeline.recipe import OpenRecipe
from resmerge_jax.pipeline.staging import Places, places
from resmerge_jax.pipeline.turns import Turn
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.plan.stacks import Step
from resmerge_jax.sharding import stack_sharding


class Sink(Protocol):
  """Where merged bytes go: a folder writer, or arrays in memory.

  `finish` follows the last `write` of a step; `numbers` are what `Records.restore` needs
  of it, None for a copied step.
  """

  def write(self, name: str, offset_bytes: int, data: np.ndarray) -> None: ...

  def finish(self, step: Step, numbers: Any) -> None: ...


def silent(label: str, nbytes: int) -> None:
  """Progress that is not shown."""
  del label, nbytes


@dataclasses.dataclass(frozen=True)
class Work:
  """A merge to run. `weights`: one per expert, or a list over the depth of the model.

  `finished`: place in the plan -> numbers, of steps that an earlier run wrote.
  `owners`: the process that makes each group of weight files alone, on `devices` of its own.
  `alone`: this process makes all of it by itself. `recipe`: where updates come from.
  `scans`: results of scans, kept between runs. `found`: the same by the method's
  parameters and the tensor; `run_scans` fills both. `measure`: KernelSpec's. `ranks`: of
  heads that are solved together.
  """

  plan: MergePlan
  group: ExpertGroup
  readers: Sequence[Reader]
  sink: Sink
  weights: tuple[Any, ...]
  seed: int
  devices: tuple[jax.Device, ...]
  progress: Callable[[str, int], None] = silent
  finished: Mapping[int, Any] = dataclasses.field(default_factory=dict)
  mesh_shape: tuple[int, int] | None = None
  owners: Mapping[str, int] | None = None
  alone: bool = False
  recipe: OpenRecipe | None = None
  measure: Any = None
  ranks: tuple[int, ...] = ()
  scans: MutableMapping[str, Findings] = dataclasses.field(default_factory=dict)
  found: MutableMapping[Any, dict[str, Mapping[str, np.ndarray]]] = dataclasses.field(
    default_factory=dict
  )

  @functools.cached_property
  def places(self) -> dict[int, Places]:
    """By the id of a step: where this process takes part in it."""
    return {id(s): self._places(i, s) for i, s in enumerate(self.plan.steps)}

  def takes_part(self, step: Step) -> bool:
    return bool(self.places[id(step)])

  @property
  def steps(self) -> list[Step]:
    """What is left to do for this process."""
    return [
      step
      for i, step in enumerate(self.plan.steps)
      if i not in self.finished and self.takes_part(step)
    ]

  def spec(self, step: Step, scan: ScanAt | None = None) -> KernelSpec:
    """The program of a step, or that of a scan of it."""
    found = self._found(step)
    one = found[step.names[0]] if found else None
    use: RecipeUse = ''
    if self.recipe is not None:
      use = self.recipe.use(step)
    elif scan is None and self.plan.layout.recipe:
      use = 'save'
    return step_spec(step, self.mesh_shape, one, scan, use, self.measure, self.ranks)

  def turns(self, step: Step, scan: ScanAt | None = None) -> tuple[Turn, ...]:
    """What is computed of a step: one program, or none where bytes are copied."""
    spec = self.spec(step, scan) if computes(step) else None
    return (Turn(spec, spec, functools.partial(self.context, step), self.seed),)

  def context(self, step: Step, layers: int) -> Context:
    """NumPy arrays with `layers` entries."""
    return step_context(
      step, layers, self.plan, self.group, self.weights, self.seed, self._found(step)
    )

  def _found(self, step: Step) -> Findings:
    if self.recipe is not None:
      return self.recipe.found(step)
    found = self.found.get(step.stack.chosen.method, {})
    given = self.plan.given.arrays
    if step.names[0] not in given:
      return found
    return {name: {**given[name], **found.get(name, {})} for name in step.names}

  def _places(self, number: int, step: Step) -> Places:
    """Where this process takes part in a step: nowhere, if it has none of its devices."""
    stack, process = step.stack, jax.process_index()
    if self.alone:
      owner = process
    elif self.owners is not None:
      owner = self.owners[self.plan.layout.group(step.names[0])]
    else:
      owner = process if computes(step) else number % jax.process_count()
    if owner != process:
      return []
    if computes(step):
      spec = step_spec(step, self.mesh_shape)
      return places(
        stack_sharding(spec.mesh(self.devices)), spec.padded_shape(self.devices)
      )
    return [(None, range(stack.layers), range(stack.rows))]


def computes(step: Step) -> bool:
  """Whether devices take part, or bytes are only copied."""
  return step.stack.action != 'base'
