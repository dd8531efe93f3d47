"""The reader of a checkpoint, by what its folder holds."""

from collections.abc import Mapping

from resmerge_jax.checkpoint.files import State
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.orbax_reader import OrbaxReader
from resmerge_jax.checkpoint.reader import CheckpointReader, Reader


def reader_of(
  checkpoint: Checkpoint, states: Mapping[str, State] | None = None
) -> Reader:
  """`states`: what the files must still be when they are opened, if that is known."""
  if checkpoint.tree is not None:
    return OrbaxReader(checkpoint)
  return CheckpointReader(checkpoint, states)
