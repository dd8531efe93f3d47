"""What headers and configuration tell of a merge: inputs opened, planned, checked."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from resmerge_jax.checkpoint.file_states import file_states
from resmerge_jax.checkpoint.files import State
from resmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from resmerge_jax.checkpoint.group import ExpertGroup, check_group
from resmerge_jax.checkpoint.remote import folder_name, scheme_of, telling_names
from resmerge_jax.config import MergeConfig, choose, outside_of
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.chips import device_facts
from resmerge_jax.pipeline.manifest import identity_of, plan_facts
from resmerge_jax.pipeline.masks import with_masks
from resmerge_jax.pipeline.recipe import OpenRecipe
from resmerge_jax.pipeline.recipe_parts import check_recipe, recipe_parts
from resmerge_jax.pipeline.resume import Found, look
from resmerge_jax.pipeline.whole_files import by_file
from resmerge_jax.plan.plan import MergePlan, make_plan
from resmerge_jax.plan.recipe_layout import with_recipe
from resmerge_jax.sharding import merge_devices
from resmerge_jax.writers.check import check_output, resolved

Opened = tuple[ExpertGroup, tuple[Mapping[str, State], ...]]


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What headers and configuration tell; `notes` concern the output folder.

  `states` are those of the files of each source, `found` is what --resume finds at the
  output.
  """

  config: MergeConfig
  group: ExpertGroup
  plan: MergePlan
  states: tuple[Mapping[str, State], ...]
  found: Found = dataclasses.field(default_factory=Found)
  notes: tuple[str, ...] = ()
  recipe: OpenRecipe | None = None

  @functools.cached_property
  def facts(self) -> dict[str, Any]:
    """What the manifest says of the merge before it runs; asks for the devices."""
    facts = plan_facts(self.config, self.group, self.plan, self.states)
    given = self.plan.given
    if given.file:
      facts['masks'] = {'path': given.file, 'sha256': given.sha256}
    if self.recipe is None:
      return facts
    path, sha256 = str(self.recipe.path), self.recipe.sha256
    return {**facts, 'recipe': {'path': path, 'sha256': sha256}}


def plan_for(
  config: MergeConfig,
  group: ExpertGroup,
  devices: Sequence[jax.Device] | None = None,
  recipe: OpenRecipe | None = None,
  settings: int = 1,
) -> MergePlan:
  """The plan of this merge on these devices (None: those that it has).

  `settings`: of the sweep, if it is one of them.

  Raises:
    InputError: as `make_plan`; masks that do not fit; a recipe that cannot be saved, or
      is of another merge.
  """
  assert config.max_shard_size is None or isinstance(config.max_shard_size, int)
  assert config.memory_budget is None or isinstance(config.memory_budget, int)
  assert not isinstance(config.mesh, str)
  devices = merge_devices(config.mesh, devices, config.whole_files, config.on_host)
  assert config.rules is not None
  outside = outside_of(config.method, config.outside, len(group.experts))
  plan = make_plan(
    group,
    config.rules,
    choose=choose(
      config.method, outside, config.post, len(group.experts), scanned=recipe is None
    ),
    output_dtype=config.output_dtype,
    max_shard_size=config.max_shard_size,
    output_format=config.output_format,
    orbax_layout=config.orbax_layout,
    budget=config.memory_budget,
    devices=device_facts(devices, config.mesh),
    settings=settings,
  )
  plan = with_masks(plan, group)
  if config.whole_files:
    plan = by_file(plan)
  if recipe is not None:
    recipe.check_group(group)
    check_recipe(recipe, plan)
  if config.save_recipe:
    layout = with_recipe(plan.layout, recipe_parts(plan), apart=config.whole_files)
    plan = dataclasses.replace(plan, layout=layout)
  return plan


def prepare(
  config: MergeConfig,
  devices: Sequence[jax.Device] | None = None,
  recipe: OpenRecipe | None = None,
  opened: Opened | None = None,
  settings: int = 1,
) -> Prepared:
  """Opens the folders, compares them, plans, and looks at the output place.

  Args:
    devices: those to plan for; None: those of this merge.
    recipe: where the updates come from, instead of the method.
    opened: what `open_group` returned for another setting of the sweep.
    settings: of the sweep.

  Raises:
    InputError: whatever is wrong that headers, names and the disk can tell.
  """
  if not config.output:
    raise InputError('no output given', fix='pass --output=DIR')
  group, states = opened or open_group(config)
  plan = plan_for(config, group, devices, recipe, settings)
  prepared = Prepared(config, group, plan, states, recipe=recipe)
  found = Found()
  if config.resume:
    identity = identity_of(prepared.facts)
    found = look(resolved(config.output), identity, config.overwrite)
  if found.complete:
    notes = ['the output is complete: --resume verifies it and changes nothing']
  else:
    places = [p for p in (config.base, *config.experts) if scheme_of(p) is None]
    inputs = [pathlib.Path(place) for place in places]
    notes = check_output(
      config.output, inputs, plan.bytes_written, config.overwrite, found.stopped
    )
  if config.whole_files and len(plan.layout.groups) < jax.process_count():
    notes.append(
      f'{len(plan.layout.groups)} weight files for {jax.process_count()} processes: '
      'the others have nothing to do (--max_shard_size makes more files)'
    )
  return dataclasses.replace(prepared, found=found, notes=tuple(notes))


def open_group(config: MergeConfig) -> Opened:
  """Base and experts, and the states of the files of each.

  Raises:
    InputError: folders that cannot be used, or do not belong together.
  """
  base, *experts = _open_all(config)
  group = check_group(base, experts, config.vocab, config.extra, config.missing)
  return group, tuple(
    file_states(s, copied=i == 0) for i, s in enumerate(group.sources)
  )


def _open_all(config: MergeConfig) -> list[Checkpoint]:
  """Base, then experts. Every folder that cannot be used is named at once."""
  ids = config.expert_ids or telling_names(config.experts)
  wanted = [(config.base, None, 'base')] + [
    (path, id, f'expert {id or folder_name(path)!r}')
    for path, id in zip(config.experts, ids, strict=True)
  ]
  opened, errors = [], []
  for path, id, role in wanted:
    try:
      opened.append(open_checkpoint(path, id, role=role))
    except InputError as error:
      errors.append(error)
  if len(errors) == 1:
    raise errors[0]
  if errors:
    raise InputError(
      f'{len(errors)} input folders cannot be used',
      [str(error).replace('\n', '\n    ') for error in errors],
    )
  return opened
