"""What to_orbax and from_orbax share: two folders, and what was done."""

from absl import flags

from resmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.progress import Progress
from resmerge_jax.sizes import format_size
from resmerge_jax.writers.convert import convert, prepare_conversion

DTYPES = ('base', 'bfloat16', 'float32')


def define_flags() -> None:
  flags.DEFINE_enum(
    'output_dtype', 'base', DTYPES, 'dtype of the floating tensors; base keeps each'
  )
  flags.DEFINE_boolean(
    'overwrite', False, 'replace a non-empty output once the new one is complete'
  )


def opened(argv: list[str], tool: str) -> tuple[Checkpoint, str]:
  """The source, opened, and the output folder.

  Raises:
    InputError: not two folders; no readable model.
  """
  if len(argv) != 3:
    raise InputError(
      f'{len(argv) - 1} folders given, two are wanted',
      fix=f'python -m tools.{tool} SOURCE OUTPUT',
    )
  return open_checkpoint(argv[1], role='source'), argv[2]


def run_conversion(
  source: Checkpoint,
  output: str,
  output_format: str,
  orbax_layout: str = 'hf',
  max_shard_size: int | None = None,
) -> None:
  """Converts with the flags given, and prints what was done."""
  made = prepare_conversion(
    source,
    output,
    output_format=output_format,
    orbax_layout=orbax_layout,
    output_dtype=flags.FLAGS.output_dtype,
    max_shard_size=max_shard_size,
    overwrite=flags.FLAGS.overwrite,
  )
  progress = Progress(sum(ref.nbytes for ref in made.layout.where.values()))
  try:
    notes = convert(made, progress)
  finally:
    progress.close()
  for note in notes:
    print(f'note: {note}')
  layout = f' (layout {orbax_layout})' if output_format == 'orbax' else ''
  print(
    f'{made.output}: {len(source.tensors)} tensors, '
    f'{format_size(made.layout.nbytes)} written as {output_format}{layout}, '
    f'dtype {flags.FLAGS.output_dtype}'
  )
