"""A whole merge: folders in, folder out."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import resource
import sys
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from resmerge_jax.checkpoint.group import ExpertGroup, check_group
from resmerge_jax.checkpoint.reader import CheckpointReader
from resmerge_jax.config import MergeConfig, outside_of, to_plain
from resmerge_jax.errors import InputError
from resmerge_jax.methods.table import method_of
from resmerge_jax.pipeline.progress import Progress
from resmerge_jax.pipeline.stream import Work, silent, stream
from resmerge_jax.plan.plan import MergePlan, make_plan
from resmerge_jax.sharding import merge_devices
from resmerge_jax.version import __version__
from resmerge_jax.writers.card import model_card
from resmerge_jax.writers.folder import FolderWriter, check_output
from resmerge_jax.writers.sidecar import copied_side_files, output_config

PACKAGES = ('jax', 'jaxlib', 'numpy', 'ml_dtypes')


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What headers and configuration tell; `notes` concern the output folder."""

  group: ExpertGroup
  plan: MergePlan
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a merge did: `content` is manifest.json, `warnings` also stand in the card.

  `notes` tell what was replaced and which leftovers of dead runs were removed.
  """

  output: pathlib.Path
  content: Mapping[str, Any]
  warnings: tuple[str, ...]
  notes: tuple[str, ...] = ()


def prepare(config: MergeConfig) -> Prepared:
  """Opens the folders, compares them, plans, and looks at the output place.

  Raises:
    InputError: whatever is wrong that headers, names and the disk can tell.
  """
  base, *experts = _open_all(config)
  group = check_group(base, experts, config.vocab)
  assert config.max_shard_size is None or isinstance(config.max_shard_size, int)
  assert config.memory_budget is None or isinstance(config.memory_budget, int)
  plan = make_plan(
    group,
    config.rules,
    whole_matrix=method_of(config.method).whole_matrix,
    output_dtype=config.output_dtype,
    max_shard_size=config.max_shard_size,
    budget=config.memory_budget,
  )
  inputs = [pathlib.Path(path) for path in (config.base, *config.experts)]
  notes = check_output(config.output, inputs, plan.bytes_written, config.overwrite)
  return Prepared(group, plan, tuple(notes))


def _open_all(config: MergeConfig) -> list[Checkpoint]:
  """Base, then experts. Every folder that cannot be used is named at once."""
  ids = config.expert_ids or (None,) * len(config.experts)
  wanted = [(config.base, None, 'base')] + [
    (path, id, f'expert {id or pathlib.Path(path).name!r}')
    for path, id in zip(config.experts, ids, strict=True)
  ]
  opened, errors = [], []
  for path, id, role in wanted:
    try:
      opened.append(open_checkpoint(path, id, role=role))
    except InputError as error:
      errors.append(error)
  if len(errors) == 1:
    raise errors[0]
  if errors:
    raise InputError(
      f'{len(errors)} input folders cannot be used',
      [str(error).replace('\n', '\n    ') for error in errors],
    )
  return opened


def merge(config: MergeConfig, *, show_progress: bool = False) -> Manifest:
  """Merges the experts of `config` into the folder `config.output`.

  The output appears complete under its name or not at all.

  Raises:
    InputError: bad input, a full disk, NaN or Inf in the weights.
  """
  start = time.perf_counter()
  prepared = prepare(config)
  group, plan = prepared.group, prepared.plan
  progress = Progress(plan.bytes_read) if show_progress else None
  with contextlib.ExitStack() as stack:
    if progress:
      stack.callback(progress.close)
    writer = stack.enter_context(
      FolderWriter(config.output, plan.layout, config.overwrite)
    )
    heads = _TiedHead(group, writer)
    work = Work(
      plan=plan,
      group=group,
      readers=[stack.enter_context(CheckpointReader(s)) for s in group.sources],
      sink=heads,
      method=config.method,
      outside=outside_of(config.method, config.outside),
      weights=config.weights or (1.0,) * len(group.experts),
      seed=config.seed,
      devices=merge_devices(),
      progress=progress or silent,
    )
    records, seconds = stream(work)
    text, config_notes = output_config(
      group.base.config,
      config.output_dtype,
      tuple(plan.layout.where.values()),
      _padded_vocabulary(group),
      heads.equal(),
    )
    warnings = (*plan.warnings, *records.twins(), *config_notes)
    lines = [json.dumps(record) for record in records.finish()]
    content = _manifest(config, prepared, warnings)
    content['seconds'] = {k: round(v, 3) for k, v in seconds.items()}
    content['seconds']['until_commit'] = round(time.perf_counter() - start, 3)
    content['peak_memory_bytes'] = _peak_memory()
    late = writer.commit(
      {
        **copied_side_files(group.base),
        'config.json': text,
        'README.md': _card(config, prepared, warnings).encode(),
        'manifest.json': (json.dumps(content, indent=2) + '\n').encode(),
        'records.jsonl': ('\n'.join(lines) + '\n').encode(),
      }
    )
  return Manifest(writer.output, content, (*warnings, *late), prepared.notes)


class _TiedHead:
  """Passes writes on, and finds out whether a stored head equals the embedding."""

  def __init__(self, group: ExpertGroup, writer: FolderWriter):
    self._writer = writer
    pair = [
      n for n in group.names if n.endswith(('lm_head.weight', 'embed_tokens.weight'))
    ]
    self._sums: dict[str, dict[int, int]] = {name: {} for name in pair}
    self._watch = len(pair) == 2

  def write(self, name: str, offset_bytes: int, data: np.ndarray) -> None:
    self._writer.write(name, offset_bytes, data)
    if self._watch and name in self._sums:
      raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
      self._sums[name][offset_bytes] = zlib.crc32(raw.data)

  def equal(self) -> bool | None:
    """None where there is no such pair."""
    if not self._watch:
      return None
    first, second = self._sums.values()
    if first.keys() != second.keys():  # cut differently: not compared
      return None
    return first == second


def _padded_vocabulary(group: ExpertGroup) -> int | None:
  """Rows of the output's vocabulary where they are not the base's."""
  for name in group.uneven:
    n_rows = group.out_shape(name)[0]
    if n_rows != group.base.tensors[name].shape[0]:
      return n_rows
  return None


def versions() -> dict[str, str]:
  """Versions of the packages that numbers may depend on."""
  return {
    'resmerge_jax': __version__,
    **{name: importlib.metadata.version(name) for name in PACKAGES},
  }


def _peak_memory() -> int:
  """Largest resident size of this process so far, bytes."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _manifest(
  config: MergeConfig, prepared: Prepared, warnings: tuple[str, ...]
) -> dict[str, Any]:
  group, plan = prepared.group, prepared.plan
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
      }
      for i, source in enumerate(group.sources)
    ],
    'plan_fingerprint': plan.fingerprint,
    'bytes_read': plan.bytes_read,
    'bytes_written': plan.bytes_written,
    'predicted_peak_memory_bytes': plan.peak_memory,
    'devices': [str(device) for device in merge_devices()],
    'files': {shard.name: shard.nbytes for shard in plan.layout.shards},
    'rules': [
      {**dataclasses.asdict(rule), 'tensors': n} for rule, n in plan.rule_counts.items()
    ],
    'warnings': list(warnings),
  }


def _card(config: MergeConfig, prepared: Prepared, warnings: tuple[str, ...]) -> str:
  group, method = prepared.group, method_of(config.method)
  name, plain = pathlib.Path(config.output).name, to_plain(config)
  counts: collections.Counter[str] = collections.Counter()
  for rule, n in prepared.plan.rule_counts.items():
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
