"""A whole merge: folders in, folder out."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import jax

from resmerge_jax.checkpoint.file_states import check_unchanged
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.config import MergeConfig
from resmerge_jax.errors import InputError
from resmerge_jax.methods.base import Findings
from resmerge_jax.pipeline.checks import check_heads
from resmerge_jax.pipeline.manifest import identity_of, peak_memory
from resmerge_jax.pipeline.prepare import Prepared, prepare
from resmerge_jax.pipeline.progress import Progress
from resmerge_jax.pipeline.recipe import OpenRecipe, recipe_json
from resmerge_jax.pipeline.records import Records
from resmerge_jax.pipeline.resume import verify_complete
from resmerge_jax.pipeline.side_files import side_files
from resmerge_jax.pipeline.stream import stream
from resmerge_jax.pipeline.whole_files import owners
from resmerge_jax.pipeline.work import Sink, Work, silent
from resmerge_jax.plan.recipe_layout import RECIPE, recipe_file
from resmerge_jax.processes import together, watched
from resmerge_jax.sharding import merge_devices
from resmerge_jax.writers.check import resolved
from resmerge_jax.writers.checksums import checksum, checksums
from resmerge_jax.writers.partial import await_shared, partial_path
from resmerge_jax.writers.resumable import ResumableWriter, is_bad_input
from resmerge_jax.writers.scans import SavedScans, to_plain
from resmerge_jax.writers.verify import bytes_to_verify, load_manifest


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a merge did: `content` is manifest.json, `warnings` also stand in the card.

  `notes` tell what was replaced, continued, or removed as a leftover of dead runs.
  `verified_only`: the output was complete before, and is as its manifest says.
  """

  output: pathlib.Path
  content: Mapping[str, Any]
  warnings: tuple[str, ...]
  notes: tuple[str, ...] = ()
  verified_only: bool = False


def merge(
  config: MergeConfig,
  *,
  show_progress: bool = False,
  recipe: OpenRecipe | None = None,
) -> Manifest:
  """Merges the experts of `config` into the folder `config.output`.

  The output appears complete under its name or not at all. With `config.resume` a run
  that stopped is continued, and a complete output is verified. `recipe`: where the
  updates come from (`apply_recipe`).

  Raises:
    InputError: bad input, NaN or Inf in the weights; `StoppedError` (a full disk, a file that
      cannot be read) can be continued, as can any interrupt: the notes of the
      exception say what is kept.
  """
  start = time.perf_counter()
  with together():
    prepared = prepare(config, recipe=recipe)
    complete = prepared.found.complete
    if complete and not damage_of(prepared, show_progress):
      warnings = tuple(complete['warnings'])
      return Manifest(resolved(config.output), complete, warnings, verified_only=True)
    if complete:
      config = dataclasses.replace(config, resume=False)
      prepared = prepare(config, recipe=recipe)  # as any other non-empty output
  with contextlib.ExitStack() as stack:
    writer = open_writer(stack, prepared, show_progress)
    records, scans, seconds = _stream(stack, config, prepared, writer, show_progress)
    with together():
      if jax.process_index():
        writer.leave()  # files are complete, and closed
    with together():
      if jax.process_index() == 0:
        for step, numbers in writer.gather(jax.process_count()):
          if numbers is not None:
            records.restore(step, numbers)
        seconds['until_commit'] = time.perf_counter() - start
        late = commit(prepared, writer, records, scans, seconds)
  await_shared(writer.output / 'manifest.json')
  content = load_manifest(writer.output)
  notes = (*prepared.notes, *writer.notes)
  if jax.process_index():
    late = []
  return Manifest(writer.output, content, (*content['warnings'], *late), notes)


def _stream(
  stack: contextlib.ExitStack,
  config: MergeConfig,
  prepared: Prepared,
  writer: ResumableWriter,
  show_progress: bool,
) -> tuple[Records, SavedScans, dict[str, float]]:
  """Merges all weights; returns once those of all processes are durable."""
  group = prepared.group
  readers = [
    stack.enter_context(reader_of(source, states))
    for source, states in zip(group.sources, prepared.states, strict=True)
  ]
  with together():
    scans = SavedScans(writer.output, writes=jax.process_index() == 0)
  work = work_of(prepared, readers, writer, scans, writer.finished)
  n_bytes = sum(step.nbytes for step in work.steps)
  progress = stack.enter_context(shown_progress(n_bytes, show_progress))
  work = dataclasses.replace(work, progress=progress)
  with watched([partial_path(writer.output)], is_bad_input):
    if jax.process_index() == 0 and config.extra == 'error':
      check_heads(group, readers)
    records, seconds = stream(work)
    check_unchanged(zip(group.sources, prepared.states, strict=True))
    writer.close_journal()
  return records, scans, seconds


def work_of(
  prepared: Prepared,
  readers: Sequence[Reader],
  sink: Sink,
  scans: MutableMapping[str, Findings],
  finished: Mapping[int, Any],
) -> Work:
  """What the loop over steps needs; it shows no progress."""
  config, plan = prepared.config, prepared.plan
  assert not isinstance(config.mesh, str)
  return Work(
    plan=plan,
    group=prepared.group,
    readers=readers,
    sink=sink,
    weights=config.weights or (1.0,) * len(config.experts),
    seed=config.seed,
    ranks=config.head_ranks or (),
    devices=merge_devices(config.mesh, None, config.whole_files, config.on_host),
    mesh_shape=config.mesh,
    finished=finished,
    scans=scans,
    owners=owners(plan, jax.process_count()) if config.whole_files else None,
    recipe=prepared.recipe,
  )


def commit(
  prepared: Prepared,
  writer: ResumableWriter,
  records: Records,
  scans: Mapping[str, Findings],
  seconds: dict[str, float],
  more: Mapping[str, Any] | None = None,
) -> list[str]:
  """Gives the output its side files, its manifest and its name; notes for the user.

  `more`: what the manifest says beside what every merge says.
  """
  config, group, plan = prepared.config, prepared.group, prepared.plan
  if prepared.recipe is not None:
    prepared.recipe.check_records(records.finish())
  files, warnings = side_files(config, group, plan, writer, records)
  if plan.layout.recipe:
    checked = {file.name: checksum(writer, file) for file in plan.layout.recipe}
    files[RECIPE] = recipe_json(
      prepared.facts, checked, plan.layout.parts, records.finish()
    )
  content = {
    **prepared.facts,
    **(more or {}),
    'warnings': list(warnings),
    'scans': {key: to_plain(found) for key, found in scans.items()},
    'seconds': {k: round(v, 3) for k, v in seconds.items()},
    'peak_memory_bytes': peak_memory(),
    **checksums(writer, plan.layout, files),
  }
  text = json.dumps(content, indent=2) + '\n'
  return writer.commit({**files, 'manifest.json': text.encode()})


@contextlib.contextmanager
def shown_progress(
  total_bytes: int, shown: bool
) -> Iterator[Callable[[str, int], None]]:
  if not shown:
    yield silent
    return
  progress = Progress(total_bytes)
  try:
    yield progress
  finally:
    progress.close()


def open_writer(
  stack: contextlib.ExitStack, prepared: Prepared, shown: bool
) -> ResumableWriter:
  """The output, prepared by process 0 before the others join it.

  What a run left that stopped is verified.
  """
  config, plan, index = prepared.config, prepared.plan, jax.process_index()
  own_files = None
  if config.whole_files:
    whose = owners(plan, jax.process_count())
    own_files = {file for file, process in whose.items() if process == index}
    own_files |= {recipe_file(file) for file in own_files}
  for turn in (index == 0, index > 0):
    with together(), shown_progress(plan.bytes_written, shown and turn) as progress:
      if turn:
        writer = stack.enter_context(
          ResumableWriter(
            config.output,
            plan.layout,
            plan.steps,
            identity_of(prepared.facts),
            overwrite=config.overwrite,
            resume=config.resume,
            progress=progress,
            process=index,
            own_files=own_files,
          )
        )
  return writer


def damage_of(prepared: Prepared, shown: bool) -> list[str]:
  """Damage of a complete output, which is an error unless it may be overwritten."""
  config, manifest = prepared.config, prepared.found.complete
  output = resolved(config.output)
  assert manifest is not None
  with shown_progress(bytes_to_verify(manifest), shown) as progress:
    identity = identity_of(prepared.facts)
    problems = verify_complete(output, manifest, identity, progress)
  if problems and not config.overwrite:
    raise InputError(
      f'output {output} is complete, but not as its manifest.json says',
      problems,
      why='it was damaged or edited after it had been written',
      fix='pass --overwrite as well: the merge then runs again and replaces it',
    )
  return problems
