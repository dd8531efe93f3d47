"""Shows what checkpoint folders hold and, for several, how they differ.

Reads config.json, the index and the headers of the *.safetensors files, never the
weights, so it takes a moment for a model of any size. A folder that a merge would
refuse is refused here with the same message.

Examples:
  Files, sizes, dtypes, tensors and warnings of one model:
    python -m tools.show out/tiny/base
  Also how two experts differ from their base (config fields, tensors, tokenizer):
    python -m tools.show out/tiny/base out/tiny/expert_math out/tiny/expert_code

To compare the numbers too: python -m tools.compare A B
"""

from resmerge_jax.checkpoint.adapter import describe_adapter
from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.summary import describe, describe_differences
from resmerge_jax.cli.app import run_app
from resmerge_jax.errors import InputError


def main(argv: list[str]) -> None:
  """Prints each folder, then each but the first against the first."""
  if len(argv) < 2:
    raise InputError('no folder given', fix='python -m tools.show DIR [DIR ...]')
  checkpoints = [open_checkpoint(path) for path in argv[1:]]
  blocks = [describe(checkpoint) for checkpoint in checkpoints]
  base, *others = checkpoints
  blocks += [
    describe_adapter(base, other)
    if other.adapter is not None and base.adapter is None
    else describe_differences(base, other)
    for other in others
  ]
  print('\n\n'.join('\n'.join(block) for block in blocks))


def run() -> None:
  """Entry point of `resmerge-show` and `python -m tools.show`."""
  run_app(main, __doc__)
