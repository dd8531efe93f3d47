"""Trains small real experts and measures what merges keep: train, evaluate or compare.

  train     makes the base and the experts of a config that --output does not have yet,
            draws their curves (curves.png) and evaluates them
  evaluate  greedy answers of all of them, and of --models, to test prompts: tables on
            stdout, in evaluation.md and .csv, and a picture
  compare   merges the groups of --seeds by every method, with the settings of the
            paper, of the methods' authors and of ours, each as it is and with its length
            tuned on training prompts; heads and residuals alone, other k and rho: tables
            with paired standard errors, OUTPUT/compare_GROUP.md, .csv, .json, .png.
            A killed comparison goes on from OUTPUT/seed_SEED/measured_*.jsonl

Needs the extra `lab`. Every model lies in OUTPUT/seed_SEED/NAME/bf16 and .../fp32
as transformers loads it; OUTPUT/seed_SEED/NAME/record.json says how it was trained.

Examples:
  Four experts of different tasks:
    python -m tools.lab train --config=configs/lab_disjoint.py --seed=0
  A merge of them:
    python -m tools.merge --base=out/lab/seed_0/base/bf16 --output=out/lab_merged
      --experts=out/lab/seed_0/rl_math/bf16,out/lab/seed_0/rl_mem/bf16
    python -m tools.lab evaluate --models=out/lab_merged
  All methods on three groups that are trained:
    python -m tools.lab compare --config=lab_disjoint --seeds=0,1,2
  The same for the supervised experts of a config that has others too:
    python -m tools.lab compare --config=lab_twins --kinds=sft
"""

import pathlib
import sys
import time
from typing import Any

from absl import flags
from ml_collections import config_flags

from resmerge_jax.cli.app import run_app
from resmerge_jax.cli.config_file import bundled_configs, load_config, take
from resmerge_jax.cli.runtime import (
  keep_jit_programs,
  keep_programs,
  tune_libraries,
)
from resmerge_jax.errors import InputError

COMMANDS = ('train', 'evaluate', 'compare')
DEFAULT_CONFIG = 'lab_disjoint'


def _define_flags(argv: list[str]) -> list[str]:
  chosen, rest = take(argv, 'config')
  chosen = chosen or DEFAULT_CONFIG
  config = load_config(chosen, lab=True)
  flags.DEFINE_string(
    'group',
    pathlib.Path(chosen).stem,
    "name of compare's files, before --kinds (default: the config's)",
  )
  config_flags.DEFINE_config_dict(
    'config',
    config,
    sys_argv=rest,
    help_string='config file: a path or a bundled name, default '
    f'{DEFAULT_CONFIG}. --config.rl.steps=10 overrides one field',
  )
  flags.DEFINE_integer('seed', 0, 'of everything that is drawn while training')
  flags.DEFINE_list('seeds', None, 'of the groups that compare takes (default: --seed)')
  flags.DEFINE_list(
    'kinds', None, "of experts that compare merges (default: the config's)"
  )
  flags.DEFINE_string('output', 'out/lab', 'folder of the groups')
  flags.DEFINE_enum('precision', 'bf16', ['bf16', 'fp32'], 'weights that are evaluated')
  flags.DEFINE_enum(
    'merge_precision',
    None,
    ['bf16', 'fp32'],
    'of the merges that compare measures (default: --precision). fp32 keeps changes '
    'that are smaller than a step of bfloat16',
  )
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
  output = pathlib.Path(flag.output)
  folder = output / f'seed_{flag.seed}'
  begun_s = time.perf_counter()

  def say(text: str) -> None:
    seconds = time.perf_counter() - begun_s
    print(f'{seconds:6.0f} s  {text}', file=sys.stderr, flush=True)

  if argv[1] == 'compare':
    keep_programs()  # of merges: most of what is compiled here
    print(_compared(recipe, output, say), end='')
    return
  keep_jit_programs()
  if argv[1] == 'train':
    from resmerge_jax.lab.group import train_group
    from resmerge_jax.lab.plot import plot_training

    records = train_group(recipe, flag.seed, folder, say)
    plot_training(records, folder / 'curves.png')
  models = [pathlib.Path(model) for model in flag.models]
  print(evaluate_group(recipe, folder, flag.precision, models, say), end='')


def _compared(recipe: Any, output: pathlib.Path, say: Any) -> str:
  from resmerge_jax.lab.compare import compare_groups
  from resmerge_jax.lab.merges import Precision

  flag = flags.FLAGS
  kinds = flag.kinds or recipe.kinds
  if unknown := [kind for kind in kinds if kind not in recipe.kinds]:
    raise InputError(
      '--kinds: the config has no such experts',
      unknown,
      fix=f'it has {", ".join(recipe.kinds)}',
    )
  n_experts = sum(kind in kinds for kind, _ in recipe.experts.values())
  if n_experts < 2:
    raise InputError('compare: one expert is nothing to merge')
  folders = [output / f'seed_{seed}' for seed in flag.seeds or [flag.seed]]
  precision = Precision(flag.precision, flag.merge_precision or flag.precision)
  parts = ['compare', flag.group, *(flag.kinds or [])]
  if precision.merges != precision.models:
    parts.append(precision.name)
  entries = _entries(n_experts)
  return compare_groups(
    recipe, kinds, folders, entries, precision, output / '_'.join(parts), say
  )


def _entries(n_experts: int) -> dict[str, Any]:
  """What is compared; the paper's settings are the bundled configs of a single merge
  without models.
  """
  from resmerge_jax.lab.variants import comparison

  configs = {name: load_config(name) for name in bundled_configs()}
  methods = {
    name: config.method.to_dict()
    for name, config in configs.items()
    if 'base' not in config and 'sweep' not in config
  }
  return comparison(methods, n_experts)


def run() -> None:
  """Entry point of `resmerge-lab` and `python -m tools.lab`."""
  tune_libraries()
  run_app(main, __doc__, define=_define_flags)
