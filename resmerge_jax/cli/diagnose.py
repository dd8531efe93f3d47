"""Measures what a merge will meet, or met: spectra, geometry, overlap, and a check-up.

Base and experts are read once, as a merge reads them, and no model is written. OUTPUT
gets diagnostics.csv (a row per tensor), diagnostics.json and report.html; a summary and
the findings of the check-up are printed. docs/diagnose.md has every number's equation.

Examples:
  Before a merge:
    python -m tools.diagnose --base=BASE --experts=MATH,CODE,TOOL --output=DIAGNOSIS
  With effective ranks, which need whole spectra and several times as long:
    python -m tools.diagnose --base=BASE --experts=A,B --output=D --effective_rank
  Two groups side by side, each with its own base first:
    python -m tools.diagnose --group=RL=BASE,RL_MATH,RL_CODE
      --group=SFT=BASE,SFT_MATH,SFT_CODE --output=DIAGNOSIS
  What a merge recorded of itself, without reading weights:
    python -m tools.diagnose --merged=MERGED --output=DIAGNOSIS
  The same with all that can be measured, and how far each expert is from the result:
    python -m tools.diagnose --merged=MERGED --base=BASE --experts=A,B --output=D
"""

import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from resmerge_jax.cli.app import define_expert_ids, no_arguments
from resmerge_jax.cli.runtime import define_process_flags, keep_programs, run_merging
from resmerge_jax.errors import InputError

if TYPE_CHECKING:
  from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
  from resmerge_jax.diagnostics.measure import Opened, Settings
  from resmerge_jax.diagnostics.recorded import Recorded


class Asked(NamedTuple):
  """A group as the flags name it; `merged`: the model merged of it, if one is given."""

  label: str
  base: str | None
  experts: tuple[str, ...]
  expert_ids: tuple[str, ...] | None = None
  merged: str | None = None

  @property
  def inputs(self) -> list[str]:
    return [x for x in (self.base, *self.experts, self.merged) if x is not None]


def main(argv: list[str]) -> None:
  """Diagnoses, writes the folder, prints the summary."""
  from resmerge_jax import processes, report
  from resmerge_jax.checkpoint.remote import scheme_of
  from resmerge_jax.diagnostics.diagnosis import Diagnosis
  from resmerge_jax.diagnostics.folder import new_folder, write_data
  from resmerge_jax.diagnostics.measure import Settings
  from resmerge_jax.diagnostics.table import as_text
  from resmerge_jax.writers.check import check_output, resolved

  no_arguments(argv)
  given = flags.FLAGS
  groups = _asked()
  fields: dict[str, Any] = {
    field.name: given[field.name].value for field in dataclasses.fields(Settings)
  }
  settings = Settings(**fields)
  keep_programs()
  processes.start(given.coordinator, given.num_processes, given.process_id)
  output = resolved(given.output)
  inputs = [pathlib.Path(x) for g in groups for x in g.inputs if scheme_of(x) is None]
  with processes.together():
    if processes.is_first():
      check_output(given.output, inputs, 0, given.overwrite)
  with _watched(output):
    diagnosis = Diagnosis(tuple(_diagnosed(groups, settings)))
  with processes.together():
    if not processes.is_first():
      return
    with new_folder(output, given.overwrite) as folder:
      write_data(diagnosis, folder)
      report.write(diagnosis, folder)
  print(as_text(diagnosis))
  print(f'\n{output}: {", ".join(sorted(file.name for file in output.iterdir()))}')


def _diagnosed(
  groups: Sequence[Asked], settings: 'Settings'
) -> Iterator['GroupDiagnosis']:
  """All groups; every one is opened and compared before a weight is read."""
  from resmerge_jax import processes
  from resmerge_jax.diagnostics.diagnose import (
    diagnose_recorded,
    diagnose_sources,
    open_with_merge,
  )
  from resmerge_jax.diagnostics.measure import bytes_read, open_sources
  from resmerge_jax.pipeline.progress import Progress
  from resmerge_jax.pipeline.work import silent

  opened: list[tuple[Asked, Opened | None, Recorded | None]] = []
  with processes.together():
    for group in groups:
      if group.base is None:
        opened.append((group, None, None))
      elif group.merged is None:
        sources = open_sources(group.base, group.experts, settings, group.expert_ids)
        opened.append((group, sources, None))
      else:
        merged = pathlib.Path(group.merged)
        pair = open_with_merge(group.base, group.experts, settings, merged)
        opened.append((group, *pair))
  total = sum(bytes_read(one) for _, one, _ in opened if one is not None)
  shown = Progress(total) if processes.is_first() and total else None
  try:
    for group, one, recorded in opened:
      if one is None:
        assert group.merged is not None
        yield diagnose_recorded(pathlib.Path(group.merged), group.label)
      else:
        yield diagnose_sources(one, group.label, recorded, shown or silent)
  finally:
    if shown is not None:
      shown.close()


@contextlib.contextmanager
def _watched(output: pathlib.Path) -> Iterator[None]:
  """Of several processes, one that fails ends the others; they meet beside the output."""
  import jax

  from resmerge_jax import processes
  from resmerge_jax.writers.partial import await_shared, partial_path

  if jax.process_count() == 1:
    yield
    return
  meeting = partial_path(output)
  try:
    with processes.together():
      if processes.is_first():
        meeting.mkdir(parents=True, exist_ok=True)
    await_shared(meeting)
    with processes.watched([meeting], lambda _: True):
      yield
  finally:
    if processes.is_first():
      shutil.rmtree(meeting, ignore_errors=True)


def _asked() -> list[Asked]:
  """The groups that the flags name. Raises InputError for flags that do not go together."""
  given = flags.FLAGS
  ways = {
    '--group': given.group,
    '--base and --experts': given.base or given.experts,
    '--merged': given.merged,
  }
  used = [way for way, value in ways.items() if value]
  if not given.output:
    raise InputError('no output given', fix='pass --output=DIR')
  if not used or ('--group' in used and len(used) > 1):
    raise InputError(
      f'{" and ".join(used)}: not together' if used else 'nothing to diagnose',
      fix='give --base and --experts, or --merged, or these together, or '
      '--group=LABEL=BASE,EXPERT,EXPERT for each group',
    )
  if bool(given.base) != bool(given.experts):
    raise InputError(
      '--base and --experts go together', fix='give both, or only --merged'
    )
  ids = tuple(given.expert_ids) if given.expert_ids else None
  if ids and (not given.base or given.merged):
    raise InputError(
      '--expert_ids goes with --base and --experts alone',
      fix='leave it out: a merge knows its experts by name',
    )
  if given.group:
    groups = [_group(text) for text in given.group]
  elif given.base:
    if given.merged and len(given.merged) > 1:
      raise InputError(
        '--merged: with --base and --experts one merged folder can be measured',
        given.merged,
      )
    merged = given.merged[0] if given.merged else None
    label = pathlib.PurePath(merged or given.base).name
    groups = [Asked(label, given.base, tuple(given.experts), ids, merged)]
  else:
    groups = [Asked(pathlib.PurePath(m).name, None, (), None, m) for m in given.merged]
  labels = [group.label for group in groups]
  if len(set(labels)) < len(labels):
    raise InputError('groups need different names', labels)
  return groups


def _group(text: str) -> Asked:
  label, equals, folders = text.partition('=')
  base, *experts = folders.split(',')
  if not (label and equals and base and experts and all(experts)):
    raise InputError(
      f'--group={text}: got no name, base and experts',
      fix='write --group=LABEL=BASE,EXPERT,EXPERT',
    )
  return Asked(label, base, tuple(experts))


def _define_flags(argv: list[str]) -> list[str]:
  from resmerge_jax.config_checks import EXTRA_POLICIES, MISSING_POLICIES, OUTPUT_DTYPES

  define_process_flags()
  flags.DEFINE_string('base', None, 'folder or address of the base model')
  flags.DEFINE_list('experts', None, 'those of the experts, comma-separated')
  define_expert_ids()
  flags.DEFINE_multi_string(
    'group', None, 'LABEL=BASE,EXPERT,EXPERT; again for each group to compare'
  )
  flags.DEFINE_list(
    'merged', None, 'output folders of merges, to see what they recorded'
  )
  flags.DEFINE_string('output', None, 'folder to write; must not exist or be empty')
  flags.DEFINE_boolean('overwrite', False, 'replace a non-empty output at the end')
  flags.DEFINE_integer('head_rank', 1, 'k, leading singular triplets of a head')
  flags.DEFINE_boolean(
    'effective_rank', False, 'also measure effective ranks, from whole spectra'
  )
  flags.DEFINE_float('threshold', 1e-5, "RAM's: an entry with larger |D| is changed")
  flags.DEFINE_enum(
    'output_dtype',
    'bfloat16',
    OUTPUT_DTYPES,
    'dtype that a merge would write, against whose step updates are held',
  )
  flags.DEFINE_enum(
    'vocab', 'error', ('error', 'base_rows'), 'as of tools.merge (docs/mismatch.md)'
  )
  flags.DEFINE_enum('extra', 'error', EXTRA_POLICIES, 'as of tools.merge')
  flags.DEFINE_enum('missing', 'error', MISSING_POLICIES, 'as of tools.merge')
  flags.DEFINE_string(
    'memory_budget', None, 'memory of this process, such as 4GiB (default: 2GiB)'
  )
  flags.DEFINE_string('mesh', None, 'devices along layers and rows: layer:4,row:2')
  flags.DEFINE_integer('seed', 0, 'of the random start of the head solver')
  return argv


def run() -> None:
  """Entry point of `resmerge-diagnose` and `python -m tools.diagnose`."""
  run_merging(main, __doc__, _define_flags)
