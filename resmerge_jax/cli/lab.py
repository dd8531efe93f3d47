"""Trains small real experts and measures what they can do: train or evaluate.

  train     makes the base and the experts of a config that --output does not have yet,
            draws their curves (curves.png) and evaluates them
  evaluate  greedy answers of all of them, and of --models, to test prompts: tables on
            stdout, in evaluation.md and evaluation.csv

Needs the extra `lab`. Every model lies in OUTPUT/NAME/bf16 and OUTPUT/NAME/fp32 as
transformers loads it; OUTPUT/NAME/record.json says how it was trained.

Examples:
  Four experts of different tasks:
    python -m tools.lab train --config=configs/lab_disjoint.py --seed=0
  A merge of them:
    python -m tools.merge --base=out/lab/seed_0/base/bf16 --output=out/lab_merged
      --experts=out/lab/seed_0/rl_math/bf16,out/lab/seed_0/rl_mem/bf16
    python -m tools.lab evaluate --models=out/lab_merged
"""

import pathlib
import sys
import time

from absl import flags
from ml_collections import config_flags

from resmerge_jax.cli.app import run_app
from resmerge_jax.cli.merge_flags import load_config, take
from resmerge_jax.cli.runtime import keep_jit_programs
from resmerge_jax.errors import InputError

COMMANDS = ('train', 'evaluate')
DEFAULT_CONFIG = 'lab_disjoint'


def _define_flags(argv: list[str]) -> list[str]:
  chosen, rest = take(argv, 'config')
  config = load_config(chosen or DEFAULT_CONFIG, lab=True)
  config_flags.DEFINE_config_dict(
    'config',
    config,
    sys_argv=rest,
    help_string='config file: a path or a bundled name, default '
    f'{DEFAULT_CONFIG}. --config.rl.steps=10 overrides one field',
  )
  flags.DEFINE_integer('seed', 0, 'of everything that is drawn while training')
  flags.DEFINE_string(
    'output', None, 'folder of the group (default: out/lab/seed_SEED)'
  )
  flags.DEFINE_enum('precision', 'bf16', ['bf16', 'fp32'], 'weights that are evaluated')
  flags.DEFINE_list('models', [], 'more model folders to evaluate')
  return rest


def main(argv: list[str]) -> None:
  """Does what the first word says."""
  if len(argv) != 2 or argv[1] not in COMMANDS:
    raise InputError(
      f'got {" ".join(argv[1:]) or "no command"}, expected one of {", ".join(COMMANDS)}'
    )
  # here, so that flags are checked before JAX is loaded
  from resmerge_jax.lab.evaluate import evaluate_group
  from resmerge_jax.lab.recipe import group_recipe

  flag = flags.FLAGS
  recipe = group_recipe(flag.config.to_dict())
  folder = pathlib.Path(flag.output or f'out/lab/seed_{flag.seed}')
  keep_jit_programs()
  begun_s = time.perf_counter()

  def say(text: str) -> None:
    seconds = time.perf_counter() - begun_s
    print(f'{seconds:6.0f} s  {text}', file=sys.stderr, flush=True)

  if argv[1] == 'train':
    from resmerge_jax.lab.group import train_group
    from resmerge_jax.lab.plot import plot_training

    records = train_group(recipe, flag.seed, folder, say)
    plot_training(records, folder / 'curves.png')
  models = [pathlib.Path(model) for model in flag.models]
  print(evaluate_group(recipe, folder, flag.precision, models, say), end='')


def run() -> None:
  """Entry point of `resmerge-lab` and `python -m tools.lab`."""
  run_app(main, __doc__, define=_define_flags)
