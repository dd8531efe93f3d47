"""From sources or a merged folder to what is said of the group."""

import pathlib
from collections.abc import Callable, Sequence

from resmerge_jax.diagnostics.checkup import Checked, check_up
from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.diagnostics.measure import Opened, Settings, measure, open_sources
from resmerge_jax.diagnostics.recorded import Recorded, absent, joined, read_merge
from resmerge_jax.diagnostics.totals import totals_of
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.work import silent


def open_with_merge(
  base: str | pathlib.Path,
  experts: Sequence[str | pathlib.Path],
  settings: Settings,
  merged: pathlib.Path,
) -> tuple[Opened, Recorded]:
  """Base, experts, and the model that was merged of them.

  Raises:
    InputError: as `open_sources`; it was merged of others.
  """
  recorded = read_merge(merged)
  if len(experts) != len(recorded.expert_ids):
    raise InputError(
      f'{merged}: merged of {len(recorded.expert_ids)} experts, {len(experts)} given',
      fix='give the base and the experts that its manifest.json names, in their order',
    )
  opened = open_sources(base, experts, settings, recorded.expert_ids, merged)
  wrong = [
    f'{source.path} is not the {entry["role"]} {entry["id"]!r} of the merge'
    for source, entry, sha256 in zip(
      opened.group.sources,
      recorded.facts['inputs'],
      recorded.header_sha256,
      strict=False,
    )
    if source.header_sha256 != sha256
  ]
  if wrong:
    raise InputError(
      f'{merged}: not merged of these checkpoints',
      wrong,
      why='distances between models that have nothing to do with each other mislead',
      fix='give the base and the experts that its manifest.json names, in their order',
    )
  return opened, recorded


def diagnose_sources(
  opened: Opened,
  label: str,
  recorded: Recorded | None = None,
  progress: Callable[[str, int], None] = silent,
) -> GroupDiagnosis:
  """Reads and measures a group; `recorded`: of the merge that was opened with it."""
  records = tuple(measure(opened, progress))
  if recorded is not None:
    records = joined(records, recorded)
  facts = None if recorded is None else recorded.facts
  dtype = opened.config.output_dtype
  settings = opened.settings
  totals = {
    'head_rank': settings.head_rank,
    'threshold': settings.threshold,
    'output_dtype': dtype,
    **totals_of(records),
  }
  notes = []
  if not settings.effective_rank:
    notes.append('effective ranks need whole spectra: --effective_rank measures them')
  return GroupDiagnosis(
    label=label,
    base=opened.group.base.id,
    expert_ids=opened.expert_ids,
    records=records,
    totals=totals,
    findings=check_up(Checked(opened.expert_ids, records, totals, dtype)),
    merge=facts,
    notes=(*opened.plan.warnings, *notes),
  )


def diagnose_recorded(folder: pathlib.Path, label: str) -> GroupDiagnosis:
  """What a merge recorded, without reading weights. Raises InputError."""
  recorded = read_merge(folder)
  dtype = recorded.facts['output_dtype']
  totals = {'output_dtype': dtype, **totals_of(recorded.records)}
  if 'head_rank' in recorded.facts['method']:
    totals['head_rank'] = recorded.facts['method']['head_rank']
  checked = Checked(recorded.expert_ids, recorded.records, totals, dtype)
  return GroupDiagnosis(
    label=label,
    base=recorded.base,
    expert_ids=recorded.expert_ids,
    records=recorded.records,
    totals=totals,
    findings=check_up(checked),
    merge=recorded.facts,
    notes=absent(recorded.records),
  )
