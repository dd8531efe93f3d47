"""From sources or a merged folder to what is said of the group."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resmerge_jax.diagnostics.checkup import Checked, check_up
from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.diagnostics.measure import Opened, Settings, measure, open_sources
from resmerge_jax.diagnostics.recorded import Recorded, absent, joined, read_merge
from resmerge_jax.diagnostics.totals import totals_of
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.work import silent

SAME_NORM = 1e-4  # relative; float32 sums in another order differ by 1e-6


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
    raise _not_of_these(merged, wrong)
  return opened, recorded


def _not_of_these(merged: str | pathlib.Path, wrong: Sequence[str]) -> InputError:
  return InputError(
    f'{merged}: not merged of these checkpoints',
    wrong,
    why='distances between models that have nothing to do with each other mislead',
    fix='give the base and the experts that its manifest.json names, in their order',
  )


def _check_norms(records: Sequence[Mapping[str, Any]], recorded: Recorded) -> None:
  """Whether each expert is as long everywhere as the one that was merged.

  Headers of experts are alike: they do not tell two of them apart.
  """
  of_merge = {record['name']: record for record in recorded.records}
  differ = [
    f'{record["name"]}: ||W - W_0|| of {who!r} is {a:.6g}, the merge recorded {b:.6g}'
    for record in records
    if 'delta_norm' in record
    for who, a, b in zip(
      recorded.expert_ids,
      record['delta_norm'],
      of_merge[record['name']]['delta_norm'],
      strict=True,
    )
    if not math.isclose(a, b, rel_tol=SAME_NORM)
  ]
  if differ:
    raise _not_of_these(recorded.facts['path'], differ)


def diagnose_sources(
  opened: Opened,
  label: str,
  recorded: Recorded | None = None,
  progress: Callable[[str, int], None] = silent,
) -> GroupDiagnosis:
  """Reads and measures a group; `recorded`: of the merge that was opened with it."""
  records = tuple(measure(opened, progress))
  if recorded is not None:
    _check_norms(records, recorded)
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
