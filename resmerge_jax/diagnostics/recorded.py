"""What a merge recorded of itself, as records of a diagnosis."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resmerge_jax.errors import InputError
from resmerge_jax.plan.rules import layer_of
from resmerge_jax.writers.verify import load_manifest

RECORDS = 'records.jsonl'
MERGE_FIELDS = (
  'alpha_R', 'beta', 'branch', 'norm_A', 'norm_C', 'update_norm', 'rounding_loss',
)  # fmt: skip
_FACTS = (
  'resmerge_jax', 'warnings', 'seconds', 'bytes_read', 'bytes_written',
  'peak_memory_bytes',
)  # fmt: skip
# Told in the notes where they are absent, by what a user calls them.
_ABSENT = {
  'base_norm': 'norms relative to the weights',
  'cos_delta_pairs': 'cosines of whole updates',
  'sigma': 'the spectrum (sigma, gap, energy, stable rank)',
  's_R': 's_R, c_R and S_H',
  'cos_head_pairs': 'cosines and retention of heads and residuals',
  'sign_conflict': 'sign conflicts, and entries changed by several experts',
  'below_step': "steps below the output dtype's",
  'distance': 'distances of the merged model to the experts',
  'effective_rank': 'effective ranks',
}


@dataclasses.dataclass(frozen=True)
class Recorded:
  """Of one merge: records as in diagnosis.py, and facts of its manifest."""

  base: str
  expert_ids: tuple[str, ...]
  records: tuple[dict[str, Any], ...]
  facts: dict[str, Any]
  header_sha256: tuple[str, ...]  # of base and experts


def read_merge(folder: pathlib.Path) -> Recorded:
  """Reads manifest.json and records.jsonl of a merged folder, no weights.

  Raises:
    InputError: the folder is not the output of a merge.
  """
  manifest = load_manifest(folder)
  path = folder / RECORDS
  try:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    records = tuple(map(_record, lines))
    inputs = [
      {key: entry[key] for key in ('role', 'id', 'path', 'header_sha256')}
      for entry in manifest['inputs']
    ]
    config = manifest['config']
    facts = {
      'path': str(folder),
      'method': config['method'],
      'post': config['post'],
      'output_dtype': config['output_dtype'],
      'inputs': inputs,
      **{key: manifest[key] for key in _FACTS if key in manifest},
    }
  except OSError as error:
    raise InputError(
      f'{path}: cannot be read: {error.strerror}',
      fix='give the output folder of a merge, with the files it was written with',
    ) from error
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{folder}: its {RECORDS} and manifest.json are not those of a merge ({error!r})',
      fix='give the output folder of a merge, with the files it was written with',
    ) from error
  base, *experts = inputs
  return Recorded(
    base=base['id'],
    expert_ids=tuple(entry['id'] for entry in experts),
    records=records,
    facts=facts,
    header_sha256=tuple(entry['header_sha256'] for entry in inputs),
  )


def joined(
  measured: Sequence[Mapping[str, Any]], recorded: Recorded
) -> tuple[dict[str, Any], ...]:
  """What was measured, with what the merge tells of itself alone."""
  of_merge = {record['name']: record for record in recorded.records}
  return tuple(
    {
      **record,
      **{
        key: value
        for key, value in of_merge.get(record['name'], {}).items()
        if key in MERGE_FIELDS
      },
    }
    for record in measured
  )


def absent(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  """Notes on what no record holds, for the reader of a report."""
  missing = [
    text for key, text in _ABSENT.items() if not any(key in r for r in records)
  ]
  if not missing:
    return ()
  return (
    f'not recorded by the merge: {"; ".join(missing)} '
    '(give --base and --experts as well to measure them)',
  )


def _record(line: Mapping[str, Any]) -> dict[str, Any]:
  record = {**line, 'layer': layer_of(line['name'])}
  record.pop('identical', None)
  if 'sigma' not in line:
    return record
  sigma_NxK = np.array(line['sigma'], np.float64)
  next_N = np.array(line['sigma_next'], np.float64)
  norm_N = np.array(line['delta_norm'], np.float64)
  squares_NxE = np.hstack([sigma_NxK, next_N[:, None]]) ** 2
  shared = squares_NxE.cumsum(1)[:, : min(squares_NxE.shape[1], *line['shape'][-2:])]
  record['energy'] = [
    np.minimum(sums_E / norm**2, 1.0).tolist() if norm else None
    for sums_E, norm in zip(shared, norm_N, strict=True)
  ]
  record['stable_rank'] = _ratios(norm_N**2, sigma_NxK[:, 0] ** 2)
  if 'norm_R' in line:
    norm_R_N = np.array(line['norm_R'], np.float64)
    record['stable_rank_residual'] = _ratios(norm_R_N**2, next_N**2)
  return record


def _ratios(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
  return [float(a / b) if b else None for a, b in zip(parts, wholes, strict=True)]
