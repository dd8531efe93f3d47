"""Tells what a merge would do, from the headers alone: a dry run of tools.merge.

Takes the flags of tools.merge. Prints the layer stacks, the rule each tensor falls
under, every warning, bytes to read and write, and the predicted peak memory. Fails
where the merge would fail before reading weights.

With --topology it plans for TPUs and compiles every step for them, without having any:
memory per chip, bytes between chips, estimated seconds. Fails if a step does not fit.
Topologies are VERSION:NxN for v5e and v6e, VERSION:NxNxN for v4 and v5p (chips along each
axis; a process has 2x2 or 2x2x1 of them), such as v5e:2x2, v5e:2x4, v5e:4x8, v5e:16x16,
v6e:4x4, v4:2x2x2, v5p:2x2x1, v5p:4x4x4. With --shape the model is one of those that
tools.make_group knows; no folder is needed.

Examples:
  python -m tools.plan --base=BASE --experts=MATH,CODE,TOOL --output=MERGED
  The same as JSON, with every tensor:
    python -m tools.plan --json --base=BASE --experts=MATH,CODE --output=MERGED
  A merge described for mergekit:
    python -m tools.plan --mergekit_yaml=ties.yaml --output=MERGED
  A sweep: its folders, and the bytes of all of them:
    python -m tools.plan --base=BASE --experts=MATH,CODE --output=DIR
      --sweep method.rho=0.1,0.2,0.3
  A 70B model on 64 chips, without its weights:
    python -m tools.plan --shape=llama-3-70b --n_experts=3 --topology=v5p:4x4x4
"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.cli.app import no_arguments, run_app
from resmerge_jax.cli.merge_flags import define_flags, merge_config
from resmerge_jax.cli.runtime import only_compile, use_cores
from resmerge_jax.cli.shape_group import shape_group
from resmerge_jax.cli.sweep_flags import define_sweep_flag, requested_merges
from resmerge_jax.config import MergeConfig
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.ahead import Ahead, compile_ahead
from resmerge_jax.pipeline.ahead_report import ahead_json, describe_ahead
from resmerge_jax.pipeline.prepare import Prepared, plan_for, prepare
from resmerge_jax.pipeline.sweep_plan import describe_sweep, prepare_sweep, sweep_json
from resmerge_jax.pipeline.topology import topology_devices
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.plan.report import describe_plan, describe_weights
from resmerge_jax.synthetic import SHAPES

if TYPE_CHECKING:
  import jax


def _define_flags(argv: list[str]) -> list[str]:
  flags.DEFINE_boolean('json', False, 'print the plan as JSON')
  flags.DEFINE_string(
    'topology', None, 'TPUs to plan and compile for, such as v5e:4x8 (none is needed)'
  )
  flags.DEFINE_enum(
    'shape', None, list(SHAPES), 'plan for this model instead of folders'
  )
  flags.DEFINE_integer('n_experts', 3, 'experts of --shape', lower_bound=1)
  define_sweep_flag()
  return define_flags(argv)


def main(argv: list[str]) -> None:
  """Prints the plan; with --topology compiles it."""
  no_arguments(argv)
  topology = flags.FLAGS.topology
  if topology:
    only_compile()
  devices = topology_devices(topology) if topology else None
  config, group, plan, notes, swept = _planned(devices)
  as_json = flags.FLAGS.json
  if not as_json:
    print('\n'.join(describe_plan(plan, group, config.output_dtype, config.formats)))
    if config.weights or any(rule.weights for rule in plan.table):
      weights = config.weights or (1.0,) * len(group.experts)
      print('\n'.join(describe_weights(plan, group, weights)))
    for note in notes:
      print(f'note: {note}')
    if swept:
      print('\n'.join(describe_sweep(swept)))
  ahead = _compiled(plan, devices) if devices else None
  if as_json:
    found = {**plan.to_json(), 'notes': list(notes)}
    found |= {'sweep': sweep_json(swept)} if swept else {}
    compiled = {'compiled': ahead_json(ahead)} if ahead else {}
    print(json.dumps({**found, **compiled}, indent=2))
  elif ahead:
    print('\n'.join(describe_ahead(ahead, plan)))
  if ahead:
    sys.stdout.flush()
    ahead.check()


def _planned(
  devices: Sequence['jax.Device'] | None,
) -> tuple[MergeConfig, ExpertGroup, MergePlan, Sequence[str], dict[str, Prepared]]:
  """The merge of the folders, or of what --shape stands for.

  Of a sweep its first merge, and all of them.
  """
  shape = flags.FLAGS.shape
  if shape is None or flags.FLAGS.mergekit_yaml:
    if flags.FLAGS['n_experts'].present:
      raise InputError(
        '--n_experts: only --shape needs to be told', fix='leave it out, or add --shape'
      )
    wanted, read_as = requested_merges(sys.argv)
    if devices is None:
      use_cores(wanted)
    swept: dict[str, Prepared] = {}
    if isinstance(wanted, dict):
      if devices is not None:
        raise InputError('--topology: only a single merge is compiled for it')
      swept = prepare_sweep(wanted)
      prepared = next(iter(swept.values()))
      notes = [note for each in swept.values() for note in each.notes]
    else:
      prepared = prepare(wanted, devices)
      notes = list(prepared.notes)
    found = prepared.config, prepared.group, prepared.plan
    return *found, (*read_as, *dict.fromkeys(notes)), swept
  names = 'base', 'experts', 'output', 'sweep'
  given = [f'--{name}' for name in names if flags.FLAGS[name].present]
  if given:
    raise InputError('--shape needs no folders', given, fix='give folders or --shape')
  group = shape_group(shape, flags.FLAGS.n_experts)
  experts = [expert.id for expert in group.experts]
  config = merge_config({'base': shape, 'experts': experts, 'output': 'merged'})
  if devices is None:
    use_cores(config)
  return config, group, plan_for(config, group, devices), (), {}


def _compiled(plan: MergePlan, devices: tuple['jax.Device', ...]) -> Ahead:
  """What compiling tells. It takes half a minute a program, so stderr says which."""
  sys.stdout.flush()
  return compile_ahead(
    plan,
    flags.FLAGS.topology,
    devices,
    lambda program: sys.stderr.write(f'compiling {program}\n'),
  )


def run() -> None:
  """Entry point of `resmerge-plan` and `python -m tools.plan`."""
  run_app(main, __doc__, define=_define_flags)
