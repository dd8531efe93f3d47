"""A sweep: one reading of the weights, one output folder per setting."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resmerge_jax.checkpoint.file_states import check_unchanged
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.config import MergeConfig
from resmerge_jax.pipeline.checks import check_heads
from resmerge_jax.pipeline.merge import (
  Manifest,
  commit,
  damage_of,
  open_writer,
  shown_progress,
  work_of,
)
from resmerge_jax.pipeline.prepare import Prepared, prepare
from resmerge_jax.pipeline.records import Records
from resmerge_jax.pipeline.sweep_plan import prepare_sweep, sweep_bytes_read
from resmerge_jax.pipeline.sweep_stream import stream_sweep, unfinished_steps
from resmerge_jax.pipeline.sweep_table import TABLE, write_table
from resmerge_jax.pipeline.work import Work
from resmerge_jax.plan.stacks import Step
from resmerge_jax.processes import together, watched
from resmerge_jax.writers.check import resolved
from resmerge_jax.writers.partial import await_shared, partial_path
from resmerge_jax.writers.resumable import ResumableWriter, is_bad_input
from resmerge_jax.writers.scans import SavedScans, from_plain
from resmerge_jax.writers.verify import load_manifest


@dataclasses.dataclass(frozen=True)
class Swept:
  """What a sweep did: the manifest of each setting, and the table of all.

  `bytes_read` in this run: once for all settings, and for scans. `notes` are about the
  sweep as a whole.
  """

  manifests: Mapping[str, Manifest]
  table: pathlib.Path
  bytes_read: int
  notes: tuple[str, ...]


def merge_sweep(
  settings: Mapping[str, MergeConfig], *, show_progress: bool = False
) -> Swept:
  """Merges the experts once per setting, reading them once.

  Every setting's output is a folder as `merge` writes it, in one folder of the sweep. All
  appear at the end, or none; each is whole under its name. With `resume` a sweep that
  stopped is continued, and settings that are complete are verified.

  Args:
    settings: by name, which is the name of the setting's output folder too.

  Raises:
    InputError: as `merge`, or the settings do not share one plan.
  """
  start = time.perf_counter()
  with together():
    prepared = prepare_sweep(settings)
    for name, each in prepared.items():
      if each.found.complete and damage_of(each, show_progress):
        config = dataclasses.replace(each.config, resume=False)
        opened = each.group, each.states
        prepared[name] = prepare(config, opened=opened, settings=len(prepared))
  todo = {name: each for name, each in prepared.items() if not each.found.complete}
  with contextlib.ExitStack() as stack:
    folder = resolved(next(iter(prepared.values())).config.output).parent
    stack.enter_context(_gone_if_empty(folder))
    writers = {n: open_writer(stack, each, show_progress) for n, each in todo.items()}
    late: dict[str, list[str]] = {}
    if writers:
      works, records, seconds = _stream(stack, prepared, writers, show_progress)
      with together():
        if jax.process_index():
          for writer in writers.values():
            writer.leave()
      with together():
        if jax.process_index() == 0:
          seconds['until_commit'] = time.perf_counter() - start
          for name, writer in writers.items():
            more = {'sweep': {'setting': name, 'settings': list(prepared)}}
            _gather(writer, records[name])
            scans = works[name].scans
            late[name] = commit(todo[name], writer, records[name], scans, seconds, more)
  manifests = {
    name: _manifest(each, writers.get(name), late.get(name, []))
    for name, each in prepared.items()
  }
  notes: list[str] = []
  with together():
    if jax.process_index() == 0:
      notes = write_table(
        folder, {name: each.config for name, each in prepared.items()}
      )
  read = sweep_bytes_read(list(prepared.values()))
  return Swept(manifests, folder / TABLE, read, tuple(notes))


def _stream(
  stack: contextlib.ExitStack,
  prepared: Mapping[str, Prepared],
  writers: Mapping[str, ResumableWriter],
  show_progress: bool,
) -> tuple[dict[str, Work], dict[str, Records], dict[str, float]]:
  """Merges all weights; returns once those of all processes are durable.

  Settings that are complete take part: others may take heads from them.
  """
  first = next(iter(prepared.values()))
  group = first.group
  readers = [
    stack.enter_context(reader_of(source, states))
    for source, states in zip(group.sources, first.states, strict=True)
  ]
  works = {}
  with together():
    for name, each in prepared.items():
      if writer := writers.get(name):
        scans: Any = SavedScans(writer.output, writes=jax.process_index() == 0)
        works[name] = work_of(each, readers, writer, scans, writer.finished)
      else:
        works[name] = _complete(each, readers)
  todo = unfinished_steps(list(works.values()))
  n_bytes = sum(first.plan.steps[i].nbytes for i in todo)
  progress = stack.enter_context(shown_progress(n_bytes, show_progress))
  name = next(iter(works))
  works[name] = dataclasses.replace(works[name], progress=progress)
  partial = [partial_path(writer.output) for writer in writers.values()]
  with watched(partial, is_bad_input):
    if jax.process_index() == 0 and first.config.extra == 'error':
      check_heads(group, readers)
    configs = [each.config for each in prepared.values()]
    records, seconds = stream_sweep(list(works.values()), configs)
    check_unchanged(zip(group.sources, first.states, strict=True))
    for writer in writers.values():
      writer.close_journal()
  return works, dict(zip(works, records, strict=True)), seconds


class _Nowhere:
  """The sink of a setting of which nothing is written."""

  def write(self, name: str, offset_bytes: int, data: np.ndarray) -> None:
    del offset_bytes, data
    raise AssertionError(f'{name} of a complete setting is written')

  def finish(self, step: Step, numbers: Any) -> None:
    del numbers
    raise AssertionError(f'{step.label} of a complete setting is finished')


def _complete(prepared: Prepared, readers: Sequence[Reader]) -> Work:
  """A setting of which nothing is to be written any more."""
  manifest = prepared.found.complete
  assert manifest is not None
  found = {key: from_plain(each) for key, each in manifest['scans'].items()}
  finished = dict.fromkeys(range(len(prepared.plan.steps)))
  return work_of(prepared, readers, _Nowhere(), found, finished)


def _gather(writer: ResumableWriter, records: Records) -> None:
  """Takes what the other processes wrote."""
  for step, numbers in writer.gather(jax.process_count()):
    if numbers is not None:
      records.restore(step, numbers)


def _manifest(
  prepared: Prepared, writer: ResumableWriter | None, late: list[str]
) -> Manifest:
  if writer is None:
    content = prepared.found.complete
    assert content is not None
    output = resolved(prepared.config.output)
    return Manifest(output, content, tuple(content['warnings']), verified_only=True)
  await_shared(writer.output / 'manifest.json')
  content = load_manifest(writer.output)
  notes = (*prepared.notes, *writer.notes)
  return Manifest(writer.output, content, (*content['warnings'], *late), notes)


@contextlib.contextmanager
def _gone_if_empty(folder: pathlib.Path) -> Iterator[None]:
  """Leaves no empty folder behind that was not there before."""
  was_there = folder.exists()
  try:
    yield
  finally:
    if not was_there and jax.process_index() == 0:
      with contextlib.suppress(OSError):
        os.rmdir(folder)
