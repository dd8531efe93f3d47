"""Tells what a merge would do, from the headers alone: a dry run of tools.merge.

Takes the flags of tools.merge. Prints the layer stacks, the rule each tensor falls
under, every warning, bytes to read and write, and the predicted peak memory. Fails
where the merge would fail before reading weights.

Examples:
  python -m tools.plan --base=BASE --experts=MATH,CODE,TOOL --output=MERGED
  The same as JSON, with every tensor:
    python -m tools.plan --json --base=BASE --experts=MATH,CODE --output=MERGED
"""

import json

from absl import flags

from resmerge_jax.cli.app import no_arguments, run_app
from resmerge_jax.cli.merge_flags import define_flags, merge_config
from resmerge_jax.pipeline.merge import prepare
from resmerge_jax.plan.report import describe_plan


def _define_flags(argv: list[str]) -> list[str]:
  flags.DEFINE_boolean('json', False, 'print the plan as JSON')
  return define_flags(argv)


def main(argv: list[str]) -> None:
  """Prints the plan."""
  no_arguments(argv)
  config = merge_config()
  prepared = prepare(config)
  if flags.FLAGS.json:
    print(
      json.dumps({**prepared.plan.to_json(), 'notes': list(prepared.notes)}, indent=2)
    )
    return
  print('\n'.join(describe_plan(prepared.plan, prepared.group, config.output_dtype)))
  for note in prepared.notes:
    print(f'note: {note}')


def run() -> None:
  """Entry point of `resmerge-plan` and `python -m tools.plan`."""
  run_app(main, __doc__, define=_define_flags)
