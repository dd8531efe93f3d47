"""manifest.json and the model card: what a merge is, and what it did."""

import collections
import dataclasses
import importlib.metadata
import json
import pathlib
import resource
import sys
from collections.abc import Mapping
from typing import Any

from resmerge_jax.checkpoint.files import State
from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.config import MergeConfig, to_plain
from resmerge_jax.methods.table import method_of
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.sharding import merge_devices
from resmerge_jax.version import __version__
from resmerge_jax.writers.card import model_card

PACKAGES = ('jax', 'jaxlib', 'numpy', 'ml_dtypes')
_PLACES = ('base', 'experts', 'output', 'overwrite')  # say where, not what


def versions() -> dict[str, str]:
  """Versions of the packages that numbers may depend on."""
  return {
    'resmerge_jax': __version__,
    **{name: importlib.metadata.version(name) for name in PACKAGES},
  }


def peak_memory() -> int:
  """Largest resident size of this process so far, bytes."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def plan_facts(
  config: MergeConfig,
  group: ExpertGroup,
  plan: MergePlan,
  states: tuple[Mapping[str, State], ...],
) -> dict[str, Any]:
  """The part of manifest.json that is known before a weight is read.

  Args:
    states: of the files of each source.
  """
  return {
    'resmerge_jax': __version__,
    'versions': versions(),
    'config': to_plain(config),
    'inputs': [
      {
        'role': 'expert' if i else 'base',
        'id': source.id,
        'path': str(source.path),
        'header_sha256': source.header_sha256,
        'bytes': source.nbytes,
        'files': {name: state._asdict() for name, state in states[i].items()},
        'read_as': dict(group.aliases.get(i, {})),
        'ignored': list(group.ignored.get(i, ())),
        'absent': [n for n in group.names if n in group.absent.get(i, ())],
      }
      for i, source in enumerate(group.sources)
    ],
    'plan_fingerprint': plan.fingerprint,
    'bytes_read': plan.bytes_read,
    'bytes_written': plan.bytes_written,
    'predicted_peak_memory_bytes': plan.peak_memory,
    'devices': collections.Counter(
      device.device_kind
      for device in merge_devices(own=config.whole_files, host=config.on_host)
    ),
    'rules': [
      {**dataclasses.asdict(rule), 'tensors': n} for rule, n in plan.rule_counts.items()
    ],
  }


def identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
  """All that the output's bytes depend on, of a manifest or its `plan_facts`.

  Places are left out: inputs that were moved are still the same.
  """
  plain = json.loads(json.dumps(manifest))
  return {
    'config': {k: v for k, v in plain['config'].items() if k not in _PLACES},
    **{
      f'{entry["role"]} {entry["id"]!r}': {
        key: entry[key] for key in ('header_sha256', 'files')
      }
      for entry in plain['inputs']
    },
    'versions': plain['versions'],
    'devices': plain['devices'],
    **{k: plain[k]['sha256'] for k in ('recipe', 'masks') if k in plain},
    'plan_fingerprint': plain['plan_fingerprint'],
  }


def card(
  config: MergeConfig, group: ExpertGroup, plan: MergePlan, warnings: tuple[str, ...]
) -> str:
  """README.md of the output."""
  method = method_of(config.method)
  name, plain = pathlib.Path(config.output).name, to_plain(config)
  counts: collections.Counter[str] = collections.Counter()
  for rule, n in plan.rule_counts.items():
    counts[f'{rule.action} ({rule.why})'] += n  # rules may share their reason
  return model_card(
    name=name,
    base=(group.base.id, group.base.header_sha256),
    experts={expert.id: expert.header_sha256 for expert in group.experts},
    method=method.name,
    reference=method.source,
    parameters=plain['method'],
    rule_counts=counts,
    output_dtype=config.output_dtype,
    formats=config.formats,
    command=f'python -m tools.merge --config={name}/manifest.json --output=NEW',
    config=json.dumps(plain, indent=2),
    warnings=warnings,
    versions=versions(),
  )
