"""Merges experts of one base model into one Hugging Face folder.

Reads Hugging Face folders (config.json and *.safetensors), streams them through the
device mesh, and writes a folder that transformers, vLLM and JAX loaders open.
`python -m tools.plan` with the same flags tells what would happen, without doing it.

Examples:
  ResMerge with the paper's settings:
    python -m tools.merge --base=BASE --experts=MATH,CODE,TOOL --output=MERGED
  Two settings changed, output in float32:
    python -m tools.merge --base=BASE --experts=MATH,CODE --output=MERGED
      --config.method.rho=0.3 --config.method.head_rank=2 --output_dtype=float32
  The authors' released code instead of the paper's equations:
    python -m tools.merge --config=resmerge_release --base=BASE --experts=A,B --output=M
  Plain task arithmetic, the second expert counting twice:
    python -m tools.merge --method=task_arithmetic --weights=1,2 --base=BASE
      --experts=A,B --output=M
  Two processes that share a file system (on a TPU pod the three flags are not needed):
    python -m tools.merge --base=B --experts=C,D --output=M
      --coordinator=HOST0:8476 --num_processes=2 --process_id=0   (and 1 on the other)
  The same into a mounted object store, each process its own weight files:
    ... --whole_files --max_shard_size=2GB
  A merge described for mergekit (docs/methods.md tells what is accepted):
    python -m tools.merge --mergekit_yaml=ties.yaml --output=MERGED
  With a recipe, from which base and experts give it again without an SVD:
    python -m tools.merge --base=BASE --experts=MATH,CODE --output=MERGED --save_recipe
  One reading, nine outputs (DIR/rho-0.1__head_rank-1, ...), a table and a picture of them:
    python -m tools.merge --base=BASE --experts=MATH,CODE --output=DIR
      --sweep method.rho=0.1,0.2,0.3 --sweep method.head_rank=1,2,4
  The ablations of the paper, one folder for each:
    python -m tools.merge --config=ablations --base=BASE --experts=MATH,CODE --output=DIR
  A merge that was killed, or stopped by a full disk, goes on where it was:
    python -m tools.merge --base=BASE --experts=MATH,CODE --output=MERGED --resume
"""

import sys

from absl import flags

from resmerge_jax.cli.app import no_arguments
from resmerge_jax.cli.runtime import (
  define_process_flags,
  keep_programs,
  run_merging,
  use_cores,
)


def main(argv: list[str]) -> None:
  """Merges, then prints what was done."""
  from resmerge_jax import processes
  from resmerge_jax.cli.merged import print_merged, print_swept
  from resmerge_jax.cli.sweep_flags import requested_merges
  from resmerge_jax.pipeline.merge import merge
  from resmerge_jax.pipeline.sweep import merge_sweep

  no_arguments(argv)
  config, read_as = requested_merges(sys.argv)
  keep_programs()
  given = flags.FLAGS
  use_cores(config, given.coordinator)
  processes.start(given.coordinator, given.num_processes, given.process_id)
  if isinstance(config, dict):
    swept = merge_sweep(config, show_progress=processes.is_first())
    if processes.is_first():
      print_swept(swept, read_as)
    return
  manifest = merge(config, show_progress=processes.is_first())
  if processes.is_first():
    method = manifest.content['config']['method']['name']
    what = f'{len(config.experts)} experts merged by {method}'
    written = f' as {config.formats}, {config.output_dtype}'
    print_merged(manifest, what, read_as, written)


def run() -> None:
  """Entry point of `resmerge-merge` and `python -m tools.merge`."""
  run_merging(main, __doc__, _define_flags)


def _define_flags(argv: list[str]) -> list[str]:
  # JAX is imported from here on: a program that restarts itself need not load it twice.
  from resmerge_jax.cli.merge_flags import define_flags
  from resmerge_jax.cli.sweep_flags import define_sweep_flag

  define_process_flags()
  define_sweep_flag()
  return define_flags(argv)
