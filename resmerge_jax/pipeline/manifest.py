"""manifest.json and the model card: what a merge is, and what it did."""

import collections
import dataclasses
import importlib.metadata
import json
import pathlib
import resource
import sys
import zlib
from collections.abc import Mapping
from typing import Any

from resmerge_jax.checkpoint.files import State
from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.config import MergeConfig, to_plain
from resmerge_jax.methods.table import method_of
from resmerge_jax.plan.layout import INDEX_NAME, OutputLayout, ShardFile
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.sharding import merge_devices
from resmerge_jax.version import __version__
from resmerge_jax.writers.card import model_card
from resmerge_jax.writers.disk import crc_of_file, crc_text, joined_crc
from resmerge_jax.writers.partial import explained
from resmerge_jax.writers.resumable import ResumableWriter

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


def checksums(
  writer: ResumableWriter,
  layout: OutputLayout,
  files: Mapping[str, bytes | pathlib.Path],
) -> dict[str, Any]:
  """Size and CRC-32 of every file of the output, and of every tensor.

  Left out are manifest.json, which holds them, and README.md, which is for people to
  edit. `files` are those beside the weights and their index.
  """
  tensors, whole = {}, {}
  for shard in layout.files:
    for ref in shard.tensors:
      tensors[ref.name] = {
        'file': shard.name,
        'begin': ref.start,
        'end': ref.start + ref.nbytes,
        'crc32': crc_text(writer.crc_of(ref.name)),
      }
    whole[shard.name] = checksum(writer, shard)
  others = {name: files[name] for name in sorted(files.keys() - {'README.md'})}
  if layout.index is not None:
    others[INDEX_NAME] = layout.index
  for name, content in others.items():
    if isinstance(content, pathlib.Path):
      with explained(f'{content} cannot be read', content):
        size, crc = content.stat().st_size, crc_of_file(content)
    else:
      size, crc = len(content), zlib.crc32(content)
    whole[name] = {'bytes': size, 'crc32': crc_text(crc)}
  return {'files': whole, 'tensors': tensors}


def checksum(writer: ResumableWriter, shard: ShardFile) -> dict[str, Any]:
  """Size and CRC-32 of one file of tensors."""
  crc = zlib.crc32(shard.header)
  for ref in shard.tensors:
    crc = joined_crc(crc, writer.crc_of(ref.name), ref.nbytes)
  return {'bytes': shard.nbytes, 'crc32': crc_text(crc)}


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
    **({'recipe': plain['recipe']['sha256']} if 'recipe' in plain else {}),
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
    command=f'python -m tools.merge --config={name}/manifest.json --output=NEW',
    config=json.dumps(plain, indent=2),
    warnings=warnings,
    versions=versions(),
  )
