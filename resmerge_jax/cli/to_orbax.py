"""Makes an Orbax checkpoint of a model folder, in the tree of a training stack.

The output is the root that orbax.checkpoint.v1.load opens; config.json, the tokenizer and
a manifest for tools.verify lie beside the tree. The source is a Hugging Face folder, or an
Orbax checkpoint in another tree. Works block by block, in bounded memory. A merge can
write the same at once: tools.merge --output_format=orbax.

Layouts: hf (a leaf per tensor), nnx (this package's Flax NNX decoder), maxtext,
maxtext_scanned and tunix.

Examples:
  python -m tools.to_orbax MERGED ORBAX --orbax_layout=maxtext_scanned
  In float32, for training:
    python -m tools.to_orbax MERGED ORBAX --orbax_layout=nnx --output_dtype=float32
"""

from absl import flags

from resmerge_jax.cli.app import run_app
from resmerge_jax.cli.convert import define_flags, opened, run_conversion
from resmerge_jax.trees.table import LAYOUTS


def main(argv: list[str]) -> None:
  """Converts one folder and prints what was done."""
  source, output = opened(argv, 'to_orbax')
  run_conversion(source, output, 'orbax', flags.FLAGS.orbax_layout)


def run() -> None:
  """Entry point of `resmerge-to-orbax` and `python -m tools.to_orbax`."""
  define_flags()
  flags.DEFINE_enum('orbax_layout', 'hf', list(LAYOUTS), 'tree of the checkpoint')
  run_app(main, __doc__)
