"""What commands print of a merge that is done."""

from collections.abc import Sequence

from resmerge_jax.pipeline.merge import Manifest
from resmerge_jax.pipeline.sweep import Swept
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


def print_swept(swept: Swept, notes: Sequence[str]) -> None:
  """What was noted of any setting, once; the folder of each; a line for all."""
  manifests = swept.manifests.values()
  notes = [*notes, *(note for each in manifests for note in each.notes), *swept.notes]
  for note in dict.fromkeys(notes):
    print(f'note: {note}')
  warnings = [warning for each in manifests for warning in each.warnings]
  for warning in dict.fromkeys(warnings):
    print(f'warning: {warning}')
  for each in manifests:
    what = 'complete, verified' if each.verified_only else 'merged'
    print(f'{each.output}: {what}')
  made = [each.content for each in manifests if not each.verified_only]
  if not made:
    print(f'{swept.table}: nothing to do, all settings are complete')
    return
  written = sum(content['bytes_written'] for content in made)
  print(
    f'{swept.table}: {len(made)} settings merged in '
    f'{made[0]["seconds"]["until_commit"]:.1f} s, {format_size(swept.bytes_read)} read, '
    f'{format_size(written)} written, '
    f'peak memory {format_size(made[0]["peak_memory_bytes"])}'
  )
