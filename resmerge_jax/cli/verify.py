"""Re-checks the output of a merge: is every byte still what was written?

Reads all files of a merged folder and compares sizes and CRC-32 checksums with its
manifest.json, tensor by tensor. Lists every file or tensor that is missing, cut off or
damaged. README.md is not checked: it is for people to edit.

Exit status: 0 all is as it was written; 1 something is not, or the folder cannot be
verified.

Example:
  After a copy to another disk:
    python -m tools.verify out/merged
"""

import pathlib

from resmerge_jax.cli.app import run_app
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.progress import Progress
from resmerge_jax.sizes import format_size
from resmerge_jax.writers.verify import bytes_to_verify, load_manifest, verify_folder


def main(argv: list[str]) -> int:
  """Verifies one folder and prints the result; returns the exit status."""
  if len(argv) != 2:
    raise InputError(
      f'{len(argv) - 1} folders given, one is wanted', fix='python -m tools.verify DIR'
    )
  folder = pathlib.Path(argv[1]).expanduser()
  manifest = load_manifest(folder)
  n_bytes = bytes_to_verify(manifest)
  progress = Progress(n_bytes)
  try:
    problems = verify_folder(folder, manifest, progress)
  finally:
    progress.close()
  if problems:
    print(f'{folder}: {len(problems)} problems', *problems, sep='\n  - ')
    print('What to do: copy the folder again from where it is good, or merge again')
    return 1
  print(
    f'{folder}: {len(manifest["files"])} files and {len(manifest["tensors"])} tensors '
    f'({format_size(n_bytes)}) are as they were written'
  )
  return 0


def run() -> None:
  """Entry point of `resmerge-verify` and `python -m tools.verify`."""
  run_app(main, __doc__)
