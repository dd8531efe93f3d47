"""Size and CRC-32 of all that an output holds, for its manifest."""

import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

from resmerge_jax.plan.layout import OutputLayout, ShardFile
from resmerge_jax.writers.disk import crc_of_file, crc_text, joined_crc
from resmerge_jax.writers.partial import explained


class Written(Protocol):
  """A writer that knows the checksums of what it wrote."""

  def crc_of(self, name: str) -> int: ...


def checksums(
  writer: Written,
  layout: OutputLayout,
  files: Mapping[str, bytes | pathlib.Path],
) -> dict[str, Any]:
  """Size and CRC-32 of every file of the output, and of every tensor in its first file.

  Left out are manifest.json, which holds them, and README.md, which is for people to
  edit. `files` are those beside the weights and their index.
  """
  tensors: dict[str, Any] = {}
  whole = {}
  for shard in layout.files:
    for ref in shard.tensors:
      place = {
        'file': shard.name,
        'begin': ref.start,
        'end': ref.start + ref.nbytes,
        'crc32': crc_text(writer.crc_of(ref.name)),
      }
      tensors.setdefault(ref.name, place)
    whole[shard.name] = checksum(writer, shard)
  others = {name: files[name] for name in sorted(files.keys() - {'README.md'})}
  others |= layout.written_texts
  for name, content in others.items():
    if isinstance(content, pathlib.Path):
      with explained(f'{content} cannot be read', content):
        size, crc = content.stat().st_size, crc_of_file(content)
    else:
      size, crc = len(content), zlib.crc32(content)
    whole[name] = {'bytes': size, 'crc32': crc_text(crc)}
  return {'files': whole, 'tensors': tensors}


def checksum(writer: Written, shard: ShardFile) -> dict[str, Any]:
  """Size and CRC-32 of one file of tensors."""
  crc = zlib.crc32(shard.header)
  for ref in shard.tensors:
    crc = joined_crc(crc, writer.crc_of(ref.name), ref.nbytes)
  return {'bytes': shard.nbytes, 'crc32': crc_text(crc)}
