"""The files of an output beside its weights, once these are merged."""

import json
import pathlib

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.config import MergeConfig
from resmerge_jax.pipeline.manifest import card
from resmerge_jax.pipeline.records import Records
from resmerge_jax.plan.orbax_files import FOLDER
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.writers.resumable import ResumableWriter
from resmerge_jax.writers.sidecar import copied_side_files, output_config


def side_files(
  config: MergeConfig,
  group: ExpertGroup,
  plan: MergePlan,
  writer: ResumableWriter,
  records: Records,
) -> tuple[dict[str, bytes | pathlib.Path], tuple[str, ...]]:
  """All files but weights, index and manifest, and the warnings of the whole run."""
  text, config_notes = output_config(
    group.base.config,
    config.output_dtype,
    tuple(ref for shard in plan.layout.shards for ref in shard.tensors),
    _padded_vocabulary(group),
    _heads_equal(group, writer),
  )
  warnings = (*plan.warnings, *records.twins(), *config_notes)
  lines = [json.dumps(record) for record in records.finish()]
  both = config.output_format == 'both'  # then its checkpoint is a model by itself too
  return {
    **copied_side_files(group.base),
    **({f'{FOLDER}/config.json': text} if both else {}),
    'config.json': text,
    'README.md': card(config, group, plan, warnings).encode(),
    'records.jsonl': ('\n'.join(lines) + '\n').encode(),
  }, warnings


def _heads_equal(group: ExpertGroup, writer: ResumableWriter) -> bool | None:
  """Whether a stored head equals the embedding; None where there is no such pair."""
  pair = [
    n for n in group.names if n.endswith(('lm_head.weight', 'embed_tokens.weight'))
  ]
  if len(pair) != 2:
    return None
  first, second = (group.out_shape(name) for name in pair)
  return first == second and writer.crc_of(pair[0]) == writer.crc_of(pair[1])


def _padded_vocabulary(group: ExpertGroup) -> int | None:
  """Rows of the output's vocabulary where they are not the base's."""
  for name in group.uneven:
    n_rows = group.out_shape(name)[0]
    if n_rows != group.base.tensors[name].shape[0]:
      return n_rows
  return None
