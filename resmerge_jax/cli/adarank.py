"""Learns which singular components of the experts a merge should keep: AdaRank.

From unlabelled prompts of each expert, as Lee et al. 2025 (arXiv 2503.22178) do from
unlabelled test data: masks over the components of every hidden matrix and a coefficient
per expert and tensor are trained so that the merged model is sure of what it says. The
paper minimises the entropy of each task's classifier; here it is that of the next
token, which is our adaptation to language models.

The result is a file of masks for `tools.merge --method=rank_mask`, and beside it
OUTPUT.csv with the entropy of every step. Base and experts are models that
resmerge_jax.models computes (Qwen2, Qwen3, Llama). All components of all experts stay
in memory, about N + 2 models in float32 and more: what is needed is said, or refused,
before a weight is read. A run that stops is started anew; the same seed gives the same
draws of prompts.

Prompts are a file of lines:
  {"expert": "math", "text": "What is 12 * 34?"}
  {"expert": "code", "ids": [5, 6, 7]}

Examples:
  python -m tools.adarank --base=BASE --experts=MATH,CODE --prompts=prompts.jsonl
    --output=masks.safetensors
  The merge with them:
    python -m tools.merge --base=BASE --experts=MATH,CODE --output=MERGED
      --method=rank_mask --config.method.masks=masks.safetensors
"""

import json
import pathlib
import sys
import time

from absl import flags

from resmerge_jax.cli.app import define_expert_ids, no_arguments, run_app
from resmerge_jax.cli.runtime import keep_jit_programs
from resmerge_jax.errors import InputError
from resmerge_jax.sizes import parse_size
from resmerge_jax.version import __version__

_NEEDED = ('base', 'experts', 'prompts', 'output')
_SETTINGS = (
  'steps', 'batch', 'learning_rate', 'rank_ratio', 'prior', 'positions', 'seed',
)  # fmt: skip


def main(argv: list[str]) -> None:
  """Learns, writes the masks and the curve, and says how to merge with them."""
  no_arguments(argv)
  flag = flags.FLAGS
  if missing := [f'--{name}' for name in _NEEDED if not getattr(flag, name)]:
    raise InputError(
      'missing flags', missing, fix='python -m tools.adarank --help shows examples'
    )
  output = pathlib.Path(flag.output).expanduser()
  curve = output.with_name(f'{output.name}.csv')
  _check_places(output, curve)
  # here, so that flags are checked before JAX is loaded
  from resmerge_jax.adarank.group import open_experts
  from resmerge_jax.adarank.prompts import read_prompts
  from resmerge_jax.adarank.run import Settings, curve_csv, learn
  from resmerge_jax.checkpoint.mask_file import mask_file_bytes
  from resmerge_jax.writers.disk import write_durably

  settings = Settings(**{name: getattr(flag, name) for name in _SETTINGS})
  budget = parse_size(flag.memory_budget) if flag.memory_budget else None
  opened = open_experts(flag.base, flag.experts, flag.expert_ids)
  config, base = opened.model.config, pathlib.Path(flag.base).expanduser()
  longest = config.max_position_embeddings
  prompts = read_prompts(flag.prompts, opened.experts, base, config.vocab_size, longest)
  keep_jit_programs()
  begun_s = time.perf_counter()

  def say(text: str) -> None:
    seconds = time.perf_counter() - begun_s
    print(f'{seconds:6.0f} s  {text}', file=sys.stderr, flush=True)

  outcome = learn(opened, prompts, settings, budget, say)
  about = {'resmerge_jax': __version__, 'adarank': json.dumps(vars(settings))}
  masks, lambdas = outcome.masks(), outcome.lambdas()
  content = mask_file_bytes(opened.experts, masks, lambdas, about)
  write_durably(curve, curve_csv(outcome, opened.experts).encode())
  write_durably(output, content)
  kept = sum(int(m.sum()) for m in masks.values())
  count = sum(m.size for m in masks.values())
  print(
    f'{output}: {kept} of {count} components of {len(masks)} matrices kept\n'
    f'python -m tools.merge --base={flag.base} --experts={",".join(flag.experts)} '
    f'--expert_ids={",".join(opened.experts)} --method=rank_mask '
    f'--config.method.masks={output} --output=MERGED'
  )


def _check_places(output: pathlib.Path, curve: pathlib.Path) -> None:
  """Raises unless both files can be made."""
  if there := [str(path) for path in (output, curve) if path.exists()]:
    raise InputError(
      'output exists already', there, fix='remove it, or give another --output'
    )
  if not output.parent.is_dir():
    raise InputError(f'output {output}: there is no folder {output.parent}')


def _define_flags(argv: list[str]) -> list[str]:
  flags.DEFINE_string('base', None, 'folder of the base model')
  flags.DEFINE_list('experts', None, 'folders of the experts, comma-separated')
  define_expert_ids()
  flags.DEFINE_string(
    'prompts', None, 'file of lines with "expert" and "text" or "ids"'
  )
  flags.DEFINE_string(
    'output', None, 'file of masks to write, such as masks.safetensors'
  )
  flags.DEFINE_integer('steps', 5000, 'steps of Adam')
  flags.DEFINE_integer('batch', 8, 'prompts of each expert per step')
  flags.DEFINE_float('learning_rate', 5e-5, 'of Adam, for masks and coefficients')
  flags.DEFINE_float(
    'rank_ratio', 1.0, 'share of the leading components kept at the start, 0: 1/N'
  )
  flags.DEFINE_float('prior', 0.3, 'coefficient of every expert at the start')
  flags.DEFINE_enum(
    'positions',
    'all',
    ['all', 'last'],
    'tokens of a prompt after which the entropy is taken; last: where an answer begins',
  )
  flags.DEFINE_integer('seed', 0, 'of the order in which prompts are drawn')
  flags.DEFINE_string(
    'memory_budget',
    None,
    'refuse to need more, such as 8GiB (default: what the machine or the device has)',
  )
  return argv


def run() -> None:
  """Entry point of `resmerge-adarank` and `python -m tools.adarank`."""
  run_app(main, __doc__, define=_define_flags)
