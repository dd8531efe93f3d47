"""What commands print of a merge that is done."""

from collections.abc import Sequence

from resmerge_jax.pipeline.merge import Manifest
from resmerge_jax.sizes import format_size


def print_merged(
  manifest: Manifest, what: str, notes: Sequence[str] = (), written: str = ''
) -> None:
  """Notes, warnings and a line: `what` was merged, and how it is `written`."""
  content = manifest.content
  for note in (*notes, *manifest.notes):
    print(f'note: {note}')
  for warning in manifest.warnings:
    print(f'warning: {warning}')
  if manifest.verified_only:
    n_bytes = sum(entry['bytes'] for entry in content['files'].values())
    print(
      f'{manifest.output}: complete, nothing to do; all {len(content["files"])} files '
      f'({format_size(n_bytes)}) are as they were written'
    )
    return
  print(
    f'{manifest.output}: {what} in {content["seconds"]["until_commit"]:.1f} s, '
    f'{format_size(content["bytes_read"])} read, '
    f'{format_size(content["bytes_written"])} written{written}, '
    f'peak memory {format_size(content["peak_memory_bytes"])}'
  )
