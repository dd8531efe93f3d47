"""Merged parameters straight into sharded arrays: no checkpoint is written.

With several processes each merges, on its own devices, the tensors of which these hold a
part, and keeps that part: nothing travels between processes, at the price of merging a
tensor once per process that holds some of it.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from resmerge_jax.checkpoint.file_states import check_unchanged
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.config import MergeConfig
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.array_sink import ArraySink, Leaf
from resmerge_jax.pipeline.checks import check_heads
from resmerge_jax.pipeline.prepare import open_group, plan_for
from resmerge_jax.pipeline.recipe import Recipe, open_recipe
from resmerge_jax.pipeline.stream import stream
from resmerge_jax.pipeline.tree_target import Tree, as_state, flat, wanted_of
from resmerge_jax.pipeline.work import Work
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.sharding import merge_devices
from resmerge_jax.trees.tree import Place
from resmerge_jax.types import DTYPES, TensorRef

Target = Mapping[str, Any]  # name -> Sharding, PartitionSpec or jax.ShapeDtypeStruct


def load_merged(
  source: MergeConfig | Recipe,
  mesh: jax.sharding.Mesh | None = None,
  target: Any = None,
  layout: str | None = None,
) -> Any:
  """Merges and returns the parameters as arrays on devices.

  The host holds the tensors that are being merged, the devices their parts of the rest.

  Args:
    source: a merge, or the recipe of one. Its output folder is not touched, settings of
      its files do not matter; `resume` and `save_recipe` are refused.
    mesh: the devices. Without a target, the first dimension that all of them divide is
      split over all; a tensor without one is replicated. None: all on one device.
    target: for each array a Sharding, a PartitionSpec on `mesh`, or a
      jax.ShapeDtypeStruct that has a sharding, and whose shape and dtype must be those
      of the merge; by name, or nested as the layout is. Or a Flax NNX module or state,
      which may be of shapes alone: its metadata tell how its parameters lie on `mesh`;
      without one they lie as its arrays do.
    layout: the tree, a name of trees.table.LAYOUTS: hf unless given, nnx for a
      module or state.

  Returns:
    Arrays by Hugging Face name (hf), or a nested dictionary; for a module or state an
    nnx.State like its own (`nnx.update(module, state)`).

  Raises:
    InputError: what `merge` finds wrong with its input; a target that does not fit.
  """
  if not isinstance(source, MergeConfig | Recipe):
    raise InputError(
      f'load_merged: got {source!r}',
      fix='give resmerge_jax.MergeConfig(BASE, EXPERTS), or resmerge_jax.Recipe(FOLDER, '
      'BASE, EXPERTS)',
    )
  state = as_state(target)
  layout = layout or ('hf' if state is None else 'nnx')
  opened = open_recipe(source) if isinstance(source, Recipe) else None
  config = opened.config if opened else source
  assert isinstance(config, MergeConfig)
  _check_settings(config)
  config = dataclasses.replace(
    config, whole_files=False, output_format='safetensors', orbax_layout='hf'
  )
  assert not isinstance(config.mesh, str)
  group, states = open_group(config)
  devices = merge_devices(config.mesh, own=True, host=config.on_host)
  plan = plan_for(config, group, devices, opened)
  tree = Tree(layout, plan.layout.where, group.base.config)
  entries = flat(target) if state is None else wanted_of(state, mesh)
  wanted = None if target is None else tree.by_name(entries)
  leaves = _leaves(plan.layout.where, tree.places, mesh, wanted)
  with contextlib.ExitStack() as stack:
    readers = [
      stack.enter_context(reader_of(each, files))
      for each, files in zip(group.sources, states, strict=True)
    ]
    sink = ArraySink(plan.layout.where, leaves)
    work = Work(
      plan=plan,
      group=group,
      readers=readers,
      sink=sink,
      weights=config.weights or (1.0,) * len(group.experts),
      seed=config.seed,
      ranks=config.head_ranks or (),
      devices=devices,
      mesh_shape=config.mesh,
      finished=_not_needed(plan, leaves),
      alone=True,
      recipe=opened,
    )
    if config.extra == 'error':
      check_heads(group, readers)
    records, _ = stream(work)
    check_unchanged(zip(group.sources, states, strict=True))
  if opened is not None:
    opened.check_records(records.finish())
  twins = [] if work.finished else records.twins()
  for warning in (*plan.warnings, *twins):
    warnings.warn(warning, stacklevel=2)
  arrays = sink.arrays()
  return tree.tree(arrays) if state is None else tree.filled(state, arrays)


def _check_settings(config: MergeConfig) -> None:
  wrong = [name for name in ('resume', 'save_recipe') if getattr(config, name)]
  if wrong:
    raise InputError(
      'load_merged: settings that concern an output folder',
      wrong,
      fix='leave them out, or merge into a folder (resmerge_jax.merge)',
    )


def _leaves(
  where: Mapping[str, TensorRef],
  places: Mapping[str, Place],
  mesh: jax.sharding.Mesh | None,
  target: Target | None,
) -> dict[str, Leaf]:
  """What to make of each tensor; all that does not fit is named at once."""
  _check_dtypes(where)
  if target is None:
    sharding = functools.partial(_spread, mesh)
    return {
      name: Leaf(at.leaf_shape, DTYPES[where[name].dtype], sharding(at.leaf_shape), at)
      for name, at in places.items()
    }
  problems = [f'{name}: the model has no such tensor' for name in target.keys() - where]
  problems += [f'{name}: not in the target' for name in where.keys() - target]
  leaves = {}
  for name, ref in where.items():
    if name not in target:
      continue
    at = places[name]
    leaf = Leaf(at.leaf_shape, DTYPES[ref.dtype], None, at)
    try:
      leaves[name] = leaf._replace(sharding=_sharding_of(target[name], mesh, leaf))
    except ValueError as error:
      problems.append(f'{name}: {str(error).splitlines()[0]}')
  if problems:
    raise InputError(
      'load_merged: the target does not fit the merged model',
      sorted(problems),
      why='nothing is left out, resized or rounded a second time',
      fix='give every tensor a sharding on a mesh; output_dtype sets the dtype',
    )
  return leaves


def _check_dtypes(where: Mapping[str, TensorRef]) -> None:
  wide = [
    f'{name}: {DTYPES[ref.dtype]}'
    for name, ref in where.items()
    if jax.dtypes.canonicalize_dtype(DTYPES[ref.dtype]) != DTYPES[ref.dtype]
  ]
  if wide:
    raise InputError(
      'load_merged: tensors of 64-bit types, which JAX arrays have only if enabled',
      wide,
      fix="set jax.config.update('jax_enable_x64', True), or another output_dtype",
    )


def _spread(mesh: jax.sharding.Mesh | None, shape: tuple[int, ...]) -> Sharding:
  """The first dimension that all devices divide over all of them, else a copy each."""
  if mesh is None:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  for i, size in enumerate(shape):
    if size and size % mesh.size == 0:
      return NamedSharding(mesh, PartitionSpec(*(None,) * i, mesh.axis_names))
  return NamedSharding(mesh, PartitionSpec())


def _sharding_of(wanted: Any, mesh: jax.sharding.Mesh | None, leaf: Leaf) -> Sharding:
  """The sharding of a target's entry; ValueError says why it is none for this tensor."""
  if isinstance(wanted, PartitionSpec) and mesh is not None:
    sharding: Any = NamedSharding(mesh, wanted)
  else:
    sharding = getattr(wanted, 'sharding', wanted)
  if not isinstance(sharding, Sharding):
    raise ValueError(
      f'got {wanted!r}, expected a sharding, or a PartitionSpec and a mesh'
    )
  for field in ('shape', 'dtype'):
    got, merged = getattr(wanted, field, None), getattr(leaf, field)
    if got is not None and got != merged:
      raise ValueError(f'{field} {got}, the merge gives {merged}')
  spec = getattr(sharding, 'spec', ())
  if len(spec) > len(leaf.shape):
    raise ValueError(f'got {spec}, the tensor has shape {leaf.shape}')
  sharding.shard_shape(leaf.shape)
  return sharding


def _not_needed(plan: MergePlan, leaves: Mapping[str, Leaf]) -> dict[int, None]:
  """Steps none of whose tensors has a part on the devices of this process."""
  return {
    i: None
    for i, step in enumerate(plan.steps)
    if not any(leaves[plan.layout.place(n)[0].name].is_here for n in step.names)
  }
