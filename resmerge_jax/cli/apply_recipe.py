"""Makes a merge again from its recipe, base and experts, without an SVD.

The recipe is the folder recipe/ that `tools.merge --save_recipe` writes. Base and experts
must be the checkpoints that were merged, in that order; they may lie elsewhere now.

Examples:
  The very same weights:
    python -m tools.apply_recipe --recipe=MERGED/recipe --base=BASE --experts=MATH,CODE
      --output=AGAIN
  Lighter heads and a stronger backbone:
    python -m tools.apply_recipe --recipe=MERGED/recipe --base=BASE --experts=MATH,CODE
      --output=LIGHTER --rho=0.1 --beta_min=0.5
"""

from absl import flags

from resmerge_jax.cli.app import no_arguments
from resmerge_jax.cli.runtime import (
  define_process_flags,
  keep_programs,
  run_merging,
)
from resmerge_jax.errors import InputError


def main(argv: list[str]) -> None:
  """Applies the recipe, then prints what was done."""
  from resmerge_jax import processes
  from resmerge_jax.cli.merged import print_merged
  from resmerge_jax.pipeline.apply_recipe import apply_recipe
  from resmerge_jax.pipeline.recipe import Recipe

  no_arguments(argv)
  given = flags.FLAGS
  required = ('recipe', 'base', 'experts', 'output')
  missing = [f'--{name}' for name in required if not given[name].value]
  if missing:
    raise InputError(
      'missing flags', missing, fix='python -m tools.apply_recipe --help shows examples'
    )
  keep_programs()
  processes.start(given.coordinator, given.num_processes, given.process_id)
  experts = tuple(given.experts)
  changes = given.rho, given.beta_min, given.beta_max
  manifest = apply_recipe(
    Recipe(given.recipe, given.base, experts, *changes),
    given.output,
    overwrite=given.overwrite,
    resume=given.resume,
    show_progress=processes.is_first(),
  )
  if processes.is_first():
    print_merged(manifest, f'{len(experts)} experts merged from {given.recipe}')


def run() -> None:
  """Entry point of `resmerge-apply-recipe` and `python -m tools.apply_recipe`."""
  run_merging(main, __doc__, _define_flags)


def _define_flags(argv: list[str]) -> list[str]:
  flags.DEFINE_string('recipe', None, 'folder recipe/ of the output of a merge')
  flags.DEFINE_string('base', None, 'folder of the base model')
  flags.DEFINE_list('experts', None, 'folders of the experts, comma-separated')
  flags.DEFINE_string('output', None, 'folder to write; must not exist or be empty')
  for name in ('rho', 'beta_min', 'beta_max'):
    flags.DEFINE_float(name, None, f"the method's {name} (default: as it was)")
  flags.DEFINE_boolean(
    'overwrite', False, 'replace a non-empty output once the new one is complete'
  )
  flags.DEFINE_boolean(
    'resume', False, 'continue where it stopped; verify the output if it is complete'
  )
  define_process_flags()
  return argv
