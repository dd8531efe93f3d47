"""Results of benchmarks that nobody ran."""

from collections.abc import Mapping
from typing import Any

from resmerge_jax.bench.cases import Case
from resmerge_jax.bench.rounds import Result, Sample

GB = 10**9
TOLD = {
  'startup': 0.5,
  'read_wait': 0.25,
  'compile_wait': 0.5,
  'until_commit': 2.0,
  'commit': 0.125,
  'bytes_read': 4 * GB,
  'bytes_written': 1 * GB,
  'predicted_peak': 2 * GB,
}


def case(**fields: Any) -> Case:
  return Case(
    **{'shape': 'tiny', 'layers': 4, 'n_experts': 3, 'vocab_rows': 512, **fields}
  )


def sample(
  name: str,
  number: int,
  seconds: float,
  details: Mapping[str, float] | None = None,
  anonymous: int | None = GB,
  others: float | None = 0.0,
) -> Sample:
  told = TOLD if name.startswith('ours') else {}
  return Sample(
    name,
    number,
    seconds,
    2 * seconds,
    2 * GB,
    anonymous,
    others,
    {**told, **(details or {})},
  )


def result(*samples: Sample, **fields: Any) -> Result:
  return Result(
    **{
      'case': case(),
      'bytes_read': 4 * GB,
      'bytes_written': GB,
      'svd_layers': 1,
      'samples': samples,
      'missing': {},
      **fields,
    }
  )
