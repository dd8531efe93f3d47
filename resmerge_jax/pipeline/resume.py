"""What --resume finds at the output: nothing, a run that stopped, or a complete merge."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.manifest import identity_of
from resmerge_jax.writers.identity import differences
from resmerge_jax.writers.partial import claim, in_use, is_live, partial_path, release
from resmerge_jax.writers.resumable import check_resumable
from resmerge_jax.writers.verify import load_manifest, verify_folder


@dataclasses.dataclass(frozen=True)
class Found:
  """`complete`: the manifest of the finished merge. `stopped`: a run to continue."""

  complete: Mapping[str, Any] | None = None
  stopped: bool = False


def look(output: pathlib.Path, identity: Mapping[str, Any], overwrite: bool) -> Found:
  """What is there of the merge that `identity` describes. Touches nothing.

  Raises:
    InputError: a run is writing it; another merge is there, complete and not to be
      overwritten, or stopped: every difference is named.
  """
  if is_live(output):
    raise in_use(output)
  try:
    manifest = load_manifest(output)
    problems = differences(identity, identity_of(manifest))
  except (InputError, KeyError, TypeError):
    manifest, problems = {}, []  # no merge, or of a version that kept less
  if manifest and not problems:
    return Found(complete=manifest)
  if problems and not overwrite:
    raise InputError(
      f'output {output} is complete, but another merge '
      '(expected: what its manifest.json says)',
      problems,
      why='--resume finishes and verifies a merge, it never replaces one',
      fix='give the settings and inputs of that merge, choose another output folder, or '
      'pass --overwrite to replace all of it',
    )
  return Found(stopped=check_resumable(output, identity) is not None)


def verify_complete(
  output: pathlib.Path,
  manifest: Mapping[str, Any],
  identity: Mapping[str, Any],
  progress: Callable[[str, int], None],
) -> list[str]:
  """Damage found in a complete output; removes what its own run left beside it."""
  problems = verify_folder(output, manifest, progress)
  if problems or not partial_path(output).exists():
    return problems
  try:
    ours = check_resumable(output, identity) is not None
  except InputError:  # of another merge into this place
    return problems
  if ours:
    release(output, claim(output))
  return problems
