"""Makes a Hugging Face folder of an Orbax checkpoint of one model.

The checkpoint is one of tools.merge or tools.to_orbax, or one that a training stack saved
with orbax.checkpoint.v1.save(DIR, parameters, custom_metadata={'layout': NAME}), and needs
the model's config.json beside its own files. Without a layout in its metadata it is the one
that has all leaves, else hf: a leaf per tensor. Works block by block.

Examples:
  python -m tools.from_orbax ORBAX MODEL
  In files of at most 2 GB, rounded to bfloat16:
    python -m tools.from_orbax ORBAX MODEL --max_shard_size=2GB --output_dtype=bfloat16
"""

from absl import flags

from resmerge_jax.cli.app import run_app
from resmerge_jax.cli.convert import define_flags, opened, run_conversion
from resmerge_jax.errors import InputError
from resmerge_jax.sizes import parse_size


def main(argv: list[str]) -> None:
  """Converts one folder and prints what was done."""
  source, output = opened(argv, 'from_orbax')
  if source.tree is None:
    raise InputError(
      f'source {source.path}: a Hugging Face folder, not an Orbax checkpoint',
      fix='python -m tools.to_orbax converts the other way',
    )
  size = flags.FLAGS.max_shard_size
  limit = parse_size(size) if size is not None else None
  run_conversion(source, output, 'safetensors', max_shard_size=limit)


def run() -> None:
  """Entry point of `resmerge-from-orbax` and `python -m tools.from_orbax`."""
  define_flags()
  flags.DEFINE_string('max_shard_size', None, 'largest weight file (default: 5GB)')
  run_app(main, __doc__)
