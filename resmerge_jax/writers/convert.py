"""A model folder in another format, tree or dtype, block by block."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.difference import read_rows, row_blocks
from resmerge_jax.checkpoint.file_states import check_unchanged, file_states
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.reader import block_bytes
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.errors import InputError
from resmerge_jax.host_float import to_float32
from resmerge_jax.plan.layout import OutputLayout
from resmerge_jax.plan.plan import lay_out_as, output_code
from resmerge_jax.types import DTYPES, TensorRef
from resmerge_jax.version import __version__
from resmerge_jax.writers.check import check_output, resolved
from resmerge_jax.writers.checksums import checksums
from resmerge_jax.writers.folder import FolderWriter
from resmerge_jax.writers.sidecar import copied_side_files, output_config

_STILL_TRUE = ('README.md', 'records.jsonl')  # of a merge: they speak of the weights


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What is made of `source`: the arguments of `convert`, and the files that follow."""

  source: Checkpoint
  output: pathlib.Path
  output_format: str
  orbax_layout: str
  output_dtype: str
  overwrite: bool
  layout: OutputLayout
  notes: tuple[str, ...]


def prepare_conversion(
  source: Checkpoint,
  output: str | os.PathLike,
  *,
  output_format: str,
  orbax_layout: str = 'hf',
  output_dtype: str = 'base',
  max_shard_size: int | None = None,
  overwrite: bool = False,
) -> Conversion:
  """Plans it from headers alone.

  Args:
    source: of `open_checkpoint`.
    output_dtype: 'base' keeps each tensor's own.

  Raises:
    InputError: the model has no such tree; the output cannot be written.
  """
  assert source.path is not None, source.id
  if source.adapter is not None:
    raise InputError(
      f'source {source.path}: a LoRA adapter, not a model',
      fix="merge it into its base with PEFT's merge_and_unload(), or with tools.merge",
    )
  tensors = tuple(
    dataclasses.replace(ref, dtype=output_code(ref, output_dtype))
    for ref in source.tensors.values()
  )
  layout = lay_out_as(source, tensors, output_format, orbax_layout, max_shard_size)
  inputs = [source.path] if isinstance(source.path, pathlib.Path) else []
  notes = check_output(output, inputs, layout.nbytes, overwrite)
  return Conversion(
    source,
    resolved(output),
    output_format,
    orbax_layout,
    output_dtype,
    overwrite,
    layout,
    (*source.warnings, *notes),
  )


def convert(made: Conversion, progress: Callable[[str, int], None]) -> tuple[str, ...]:
  """Writes the output, which appears complete under its name or not at all.

  Args:
    progress: called with a tensor and bytes read.

  Returns:
    Notes for the user.

  Raises:
    InputError: the source changed or cannot be read, the disk refuses.
  """
  source, where = made.source, made.layout.where
  states = file_states(source, copied=True)
  with (
    FolderWriter(made.output, made.layout, made.overwrite) as writer,
    reader_of(source, states) as reader,
  ):
    for name, ref in source.tensors.items():
      for start, stop in row_blocks(ref, where[name]):
        block = _cast(read_rows(reader, ref, start, stop), where[name].dtype)
        writer.write(name, block_bytes(where[name], start, stop)[0], block)
        progress(name, block.nbytes)
    check_unchanged([(source, states)])
    files, notes = _side_files(made)
    manifest = {**_facts(made), **checksums(writer, made.layout, files)}
    files['manifest.json'] = (json.dumps(manifest, indent=2) + '\n').encode()
    return (*made.notes, *notes, *writer.commit(files))


def _cast(block: np.ndarray, dtype: str) -> np.ndarray:
  """The numbers rounded once to another dtype, to nearest."""
  wanted = DTYPES[dtype]
  return block if block.dtype == wanted else to_float32(block).astype(wanted)


def _side_files(
  made: Conversion,
) -> tuple[dict[str, bytes | pathlib.Path], list[str]]:
  refs: tuple[TensorRef, ...] = tuple(made.layout.where.values())
  text, notes = output_config(made.source.config, made.output_dtype, refs)
  folder = made.source.path
  assert folder is not None
  kept = tuple(name for name in _STILL_TRUE if (folder / name).exists())
  names = (*made.source.side_files, *kept)
  copied = copied_side_files(dataclasses.replace(made.source, side_files=names))
  return {**copied, 'config.json': text}, notes


def _facts(made: Conversion) -> dict[str, Any]:
  """The part of manifest.json that is known before a weight is read."""
  return {
    'resmerge_jax': __version__,
    'converted': {
      'path': str(made.source.path),
      'header_sha256': made.source.header_sha256,
      'bytes': made.source.nbytes,
    },
    'output_format': made.output_format,
    'orbax_layout': made.orbax_layout,
    'output_dtype': made.output_dtype,
  }
