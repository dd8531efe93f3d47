"""Measures a merge beside its rivals, each a whole fresh process, in turn.

Makes expert groups with the shapes of real models (once; later runs find them in
--work_dir), then runs every process once per round: A B C A B C ... Ratios are taken
within a round, so that a machine that slows down between rounds does not spoil them.

  floor       reads every input byte, writes and syncs the output's: the least possible
  import_jax  python -c 'import jax': what every JAX program pays (comes with floor)
  mergekit    plain task arithmetic, if mergekit is installed
  full_svd    exact ResMerge by numpy.linalg.svd on --svd_layers layers, in the first
              round only: minutes per layer of a 7B model
  ours_first  this package's merge with an empty compilation cache (always)
  ours        the same with the cache filled (always)

Inputs are read once before, so times are those of a warm page cache. Memory is looked
at from outside every 20 ms. Leave the machine alone meanwhile.

Examples:
  All of the shapes of Qwen2.5-0.5B, three experts (7 GB on disk, two minutes):
    python -m tools.bench --shape=qwen2.5-0.5b
  Eight layers of the 3B model against the floor alone, raw numbers kept:
    python -m tools.bench --shape=qwen2.5-3b --layers=8 --rivals=floor --json=3b.json
  One layer of the 7B model without its embeddings, against the full SVD:
    python -m tools.bench --shape=qwen2.5-7b --layers=1 --vocab_rows=1024
      --rivals=full_svd --repeat=3
  Does time grow linearly? Tables, and pictures in out/bench/sweep_*.png:
    python -m tools.bench --shape=qwen2.5-1.5b --sweep=layers=2,4,8 --repeat=3
    python -m tools.bench --shape=qwen2.5-1.5b --layers=4 --sweep=n_experts=2,4,8
"""

import pathlib
import sys

from absl import flags

from resmerge_jax.bench.benchmark import run_benchmark
from resmerge_jax.bench.cases import MOST_EXPERTS, RIVALS, SWEEPS, benchmark
from resmerge_jax.cli.app import no_arguments, run_app
from resmerge_jax.synthetic import SHAPES


def _define_flags() -> None:
  flags.DEFINE_string(
    'shape', 'qwen2.5-0.5b', f'model whose shapes are used: {", ".join(SHAPES)}'
  )
  flags.DEFINE_integer('layers', None, 'decoder layers (default: all of the model)')
  flags.DEFINE_integer(
    'n_experts', None, f'number of experts, 2 to {MOST_EXPERTS} (default: 3)'
  )
  flags.DEFINE_integer('vocab_rows', None, "vocabulary (default: the model's)")
  flags.DEFINE_list(
    'rivals', ['floor', 'mergekit'], f'what ours runs beside: {", ".join(RIVALS)}'
  )
  flags.DEFINE_integer('svd_layers', 1, 'layers that full_svd merges')
  flags.DEFINE_integer('repeat', 5, 'rounds')
  flags.DEFINE_string(
    'sweep', None, f'field and values, such as layers=2,4,8 ({" or ".join(SWEEPS)})'
  )
  flags.DEFINE_string(
    'work_dir', 'out/bench', 'for groups (kept) and outputs (deleted)'
  )
  flags.DEFINE_string('output', None, 'folder of the pictures (default: --work_dir)')
  flags.DEFINE_string('json', None, 'file for all raw numbers and machine facts')


def main(argv: list[str]) -> None:
  """Measures what the flags ask for and prints tables."""
  no_arguments(argv)
  flag = flags.FLAGS
  request = benchmark(
    flag.shape,
    layers=flag.layers,
    n_experts=flag.n_experts,
    vocab_rows=flag.vocab_rows,
    rivals=flag.rivals,
    svd_layers=flag.svd_layers,
    repeat=flag.repeat,
    sweep=flag.sweep,
  )
  lines = run_benchmark(
    request,
    work_dir=pathlib.Path(flag.work_dir),
    output=pathlib.Path(flag.output or flag.work_dir),
    json_file=pathlib.Path(flag.json) if flag.json else None,
    say=lambda text: print(text, file=sys.stderr, flush=True),
  )
  for line in lines:
    print(line, flush=True)


def run() -> None:
  """Entry point of `resmerge-bench` and `python -m tools.bench`."""
  _define_flags()
  run_app(main, __doc__)
