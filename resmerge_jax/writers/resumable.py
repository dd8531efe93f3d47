"""A folder writer with a journal: what a run that stopped has written is used again."""

import collections
import contextlib
import os
import pathlib
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

from resmerge_jax.checkpoint.reader import block_bytes
from resmerge_jax.errors import InputError, StoppedError
from resmerge_jax.plan.layout import OutputLayout
from resmerge_jax.plan.stacks import Step
from resmerge_jax.writers.check import resolved
from resmerge_jax.writers.disk import Buffer
from resmerge_jax.writers.folder import FolderWriter, Span
from resmerge_jax.writers.identity import differences
from resmerge_jax.writers.journal import Journal, joined, read_journal
from resmerge_jax.writers.partial import (
  claim,
  explained,
  journal_path,
  journal_paths,
  release,
)


def check_resumable(
  output: pathlib.Path, identity: Mapping[str, Any]
) -> list[Any] | None:
  """Finished steps in the journal of a run into `output`; None if there are none.

  Raises:
    InputError: the run that stopped was another one; names every difference.
  """
  path = journal_path(output)
  with explained(f'the journal of {output} cannot be read', path):
    found, entries = read_journal(path)
    others = [read_journal(other) for other in journal_paths(output)[1:]]
  if found is None or not (entries or any(each for _, each in others)):
    return None
  if problems := differences(identity, found):
    raise InputError(
      f'the run that stopped at {output} cannot be continued: it was another merge '
      '(expected: what its journal says)',
      problems,
      why='half of the output would be of one merge and half of the other',
      fix='repeat the command that stopped, with --resume and the same inputs, or leave '
      f'--resume out: {path.parent} is then removed and the merge starts from nothing',
    )
  return joined(
    [*entries, *(e for same, each in others if same == found for e in each)]
  )


class ResumableWriter:
  """Writes an output folder step by step; `finish` makes a step survive the process.

  Leaving the `with` block by an error of the disk, a signal or a defect keeps what is
  finished, and the error gets a note that says so. Bad input deletes it.

  Args:
    steps: of the plan; a step's number is its place among them.
    identity: what the run is (writers/identity.py), as JSON knows it.
    resume: continue a run that stopped, if there is one. Else what it left is deleted.
    progress: called with a label and bytes read back while they are verified.
    own_files: as of `FolderWriter`; steps of one group of files then count once all are
      finished, so that a file that is continued is never half written.
    process: which of several processes this is. Number 0 prepares the output before the
      others come, and commits what all have written.

  Raises:
    InputError: as `FolderWriter` and `check_resumable`.
  """

  def __init__(
    self,
    output: str | os.PathLike,
    layout: OutputLayout,
    steps: Sequence[Step],
    identity: dict[str, Any],
    *,
    overwrite: bool,
    resume: bool,
    progress: Callable[[str, int], None],
    process: int = 0,
    own_files: Collection[str] | None = None,
  ):
    self.finished: dict[int, Any] = {}  # step number -> its numbers for the records
    self.notes: list[str] = []
    self._layout, self._steps = layout, steps
    self._numbers = {id(step): i for i, step in enumerate(steps)}
    self._committed = False
    # group of files -> entries of its finished steps, and the files
    self._waiting: dict[str, list[tuple[Any, set[str]]]] = {}
    self.output = resolved(output)
    self._identity, self._process = identity, process
    lock_fd, saved = None, None
    if resume and process == 0:
      lock_fd, saved = self._claim_saved(identity)
    self._folder = FolderWriter(
      output, layout, overwrite, lock_fd, joins=process > 0, own_files=own_files
    )
    try:
      kept = [] if saved is None else self._verified(saved, progress)
      with self._explained():
        if process:
          self._take_finished()
        path = journal_path(self.output, process)
        self._journal = Journal(path, identity, kept, self._folder.sync)
        if process == 0:
          for path in journal_paths(self.output)[1:]:
            path.unlink()  # what counts of them is in ours now
      self._unfinished = self._count_unfinished() if own_files is not None else None
    except BaseException:
      self._folder.abort(keep=bool(saved))
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    if self._committed:
      return
    try:
      with contextlib.suppress(InputError, OSError):  # its steps are lost, no others
        self._journal.close()
    finally:
      keep = self._journal.count > 0 and not is_bad_input(error)
      self._folder.abort(keep)
    if keep and error is not None:
      error.add_note(
        f'{self._journal.count} of {len(self._steps)} steps are kept in '
        f'{journal_path(self.output).parent}: the same command with --resume continues'
      )

  def write(self, name: str, offset_bytes: int, data: Buffer) -> None:
    self._folder.write(name, offset_bytes, data)

  def finish(self, step: Step, numbers: Any) -> None:
    """Notes that all bytes of `step` are written. `numbers`: what its records need."""
    places = self._places(step)
    entry = {
      'step': self._numbers[id(step)],
      'rows': [step.row_start, step.row_stop],
      'written': {name: self._folder.spans(*at) for name, at in places.items()},
      'numbers': numbers,
    }
    files = {
      ref.file
      for tensor, _, _ in places.values()
      for ref in self._layout.places[tensor]
    }
    with self._explained():
      for ready, written in self._ready(step, entry, files):
        self._journal.add(ready, written)

  def _count_unfinished(self) -> collections.Counter[str]:
    """Steps to do of each group of files, where no step touches two."""
    return collections.Counter(
      self._layout.group(step.names[0])
      for i, step in enumerate(self._steps)
      if i not in self.finished
    )

  def _ready(
    self, step: Step, entry: Any, files: set[str]
  ) -> list[tuple[Any, set[str]]]:
    """Entries that count now that this one is finished, with their files."""
    if self._unfinished is None:
      return [(entry, files)]
    group = self._layout.group(step.names[0])
    self._waiting.setdefault(group, []).append((entry, files))
    self._unfinished[group] -= 1
    return [] if self._unfinished[group] else self._waiting.pop(group)

  def spans(self, name: str) -> list[Span]:
    """What was written of a tensor, in this run and before."""
    return self._folder.spans(name)

  def crc_of(self, name: str) -> int:
    """CRC-32 of a tensor that is completely written."""
    return self._folder.crc_of(name)

  def close_journal(self) -> None:
    """Returns when all steps of this process are durable."""
    with self._explained():
      self._journal.close()

  def gather(self, n_processes: int) -> Iterator[tuple[Step, Any]]:
    """Counts what the other processes wrote as written; yields their steps' numbers."""
    for process in range(1, n_processes):
      with self._explained():
        _, entries = read_journal(journal_path(self.output, process))
      for entry in entries:
        for name, spans in entry['written'].items():
          for span in spans:
            self._folder.adopt(self._layout.place(name)[0].name, Span(*span))
        yield self._steps[entry['step']], entry['numbers']

  def commit(self, files: Mapping[str, bytes | pathlib.Path]) -> list[str]:
    """As `FolderWriter.commit`; a kill on the way costs no step."""
    self.close_journal()
    notes = self._folder.commit(files)
    self._committed = True
    return notes

  def leave(self) -> None:
    """Ends a process that another one commits for."""
    self.close_journal()
    self._folder.abort(keep=True)
    self._committed = True

  def _claim_saved(
    self, identity: dict[str, Any]
  ) -> tuple[int | None, list[Any] | None]:
    """The lock and the journal of a run that stopped; (None, None) if there is none."""
    with explained(f'output {self.output} cannot be prepared', self.output):
      lock_fd = claim(self.output, keep=True)
    try:
      saved = check_resumable(self.output, identity)
    except BaseException:
      release(self.output, lock_fd, keep=True)
      raise
    if saved is not None:
      return lock_fd, saved
    release(self.output, lock_fd)
    self.notes.append('nothing to resume: the merge starts from the beginning')
    return None, None

  def _take_finished(self) -> None:
    """Takes from the journal of process 0 what is finished.

    Raises:
      InputError: process 0 runs another merge.
    """
    found, entries = read_journal(journal_path(self.output))
    if problems := differences(self._identity, found or {}):
      raise InputError(
        f'process {self._process} was given another merge than process 0 (expected: '
        'what process 0 was given)',
        problems,
        why='each process writes its part of the same output',
        fix='start all processes with the same flags, versions and input files',
      )
    self.finished = {entry['step']: entry['numbers'] for entry in entries}

  def _explained(self) -> Any:
    path = journal_path(self.output)
    return explained(f'cannot write {path.name}', path, self._layout.nbytes)

  def _places(self, step: Step) -> dict[str, tuple[str, int, int]]:
    """Tensor, and its bytes [begin, end), of each name that a step writes.

    Of what goes to a recipe it writes all.
    """
    found = {}
    for name in step.names:
      ref, first = self._layout.place(name)
      rows = first + step.row_start, first + step.row_stop
      found[name] = ref.name, *block_bytes(ref, *rows)
      for part in self._layout.parts.get((name, step.row_start), {}).values():
        found[part] = part, 0, self._layout.where[part].nbytes
    return found

  def _verified(
    self, entries: list[Any], progress: Callable[[str, int], None]
  ) -> list[Any]:
    """Adopts the steps whose bytes are on disk as the journal says; returns them."""
    kept, damaged = [], []
    for entry in entries:
      i = entry['step']
      step = self._steps[i]
      if i in self.finished or [step.row_start, step.row_stop] != entry['rows']:
        continue
      places = self._places(step)
      wanted = sum(end - begin for _, begin, end in places.values())
      spans = [
        (tensor, Span(*span))
        for name, (tensor, _, _) in places.items()
        for span in entry['written'].get(name, ())
      ]
      if sum(span.end - span.begin for _, span in spans) != wanted:
        pass  # another process had not finished its part
      elif not all(self._folder.holds(name, span) for name, span in spans):
        damaged.append(step.label)
      else:
        for name, span in spans:
          self._folder.adopt(name, span)
        self.finished[i] = entry['numbers']
        kept.append(entry)
      progress(f'verifying {step.label}', wanted)
    self.notes.append(
      f'resuming: {len(kept)} of {len(self._steps)} steps are on disk and verified'
    )
    if damaged:
      more = f' and {len(damaged) - 3} more' if len(damaged) > 3 else ''
      self.notes.append(
        'not on disk as the journal says, computed again: '
        + '; '.join(damaged[:3])
        + more
      )
    return kept


def is_bad_input(error: BaseException | None) -> bool:
  """Whether the same command would fail again, so that nothing is worth keeping."""
  if error is None:
    return True  # left without a commit
  return isinstance(error, InputError) and not isinstance(error, StoppedError)
