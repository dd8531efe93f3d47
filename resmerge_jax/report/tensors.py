"""The table of tensors, bounded: models have up to 20,000 matrices."""

from collections.abc import Sequence

from resmerge_jax.diagnostics.diagnosis import GroupDiagnosis
from resmerge_jax.report.figure import Table, table_html
from resmerge_jax.report.markup import Markup, tag
from resmerge_jax.report.values import Pick, Record, energy, field, point

MOST_ROWS = 400  # of all groups together
CSV = 'diagnostics.csv'
_COLUMNS: tuple[tuple[str, Pick], ...] = (
  ('‖D‖ / ‖W₀‖, %', field('relative_norm', 100.0)),
  ('unchanged, %', field('zero_fraction', 100.0)),
  ('leading energy, %', energy(1)),
  ('stable rank', field('stable_rank')),
  ('c_R', field('c_R')),
  ('S_H', field('S_H')),
  ('Ret_H', field('retention_head')),
  ('Ret_R', field('retention_residual')),
  ('sign conflict, %', field('sign_conflict', 100.0)),
  ('rounding loss, %', field('rounding_loss', 100.0)),
)


def as_html(groups: Sequence[GroupDiagnosis]) -> Markup:
  """The tensors, largest updates first where there are too many to show."""
  parts = []
  for group in groups:
    most = MOST_ROWS // len(groups)
    shown = _largest(group.records, most)
    columns = [(name, pick) for name, pick in _COLUMNS if _any(shown, pick)]
    has_branch = any(record.get('branch') for record in shown)
    header = ('tensor', 'family', 'shape', *(['branch'] if has_branch else []))
    rows = tuple(
      (
        record['name'],
        record.get('family', ''),
        ' × '.join(map(str, record.get('shape', ()))),
        *([record.get('branch', '')] if has_branch else []),
        *(
          (p.mean if (p := point(pick(record, None))) else None) for _, pick in columns
        ),
      )
      for record in shown
    )
    count = f'{len(group.records):,} tensors' if len(shown) == len(group.records) else (
      f'{len(shown):,} of {len(group.records):,} tensors, those with the largest updates '
      f'beside their weights; {CSV} has all'
    )  # fmt: skip
    label = f'{group.label}: {count}' if len(groups) > 1 else count
    table = table_html(
      Table((*header, *(name for name, _ in columns)), rows), sortable=True
    )
    parts.append(tag('details', tag('summary', label), table))
  return tag('div', *parts)


def _any(records: Sequence[Record], pick: Pick) -> bool:
  return any(pick(record, None) for record in records)


def _largest(records: Sequence[Record], most: int) -> list[Record]:
  """The `most` records with the largest updates, in the model's order."""
  if len(records) <= most:
    return list(records)
  size = (
    field('relative_norm')
    if _any(records, field('relative_norm'))
    else field('delta_norm')
  )
  order = sorted(
    range(len(records)), key=lambda i: -max(size(records[i], None), default=0.0)
  )
  return [records[i] for i in sorted(order[:most])]
