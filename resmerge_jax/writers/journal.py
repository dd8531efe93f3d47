"""The journal of a run: what it is, then one line per step whose bytes are durable.

Every line is a JSON object {"crc32": ..., "entry": ...}; the checksum is that of the
entry's text. The entry of the first line identifies the run. A line that is torn or
damaged does not count: its step is computed again.
"""

import json
import pathlib
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, BinaryIO

from resmerge_jax.writers.disk import crc_text, sync_file, write_durably

EVERY_S = 0.5  # between syncs: what a power cut or a kill can cost beside running steps
_HEAD = '{"crc32":"%s","entry":'
_HEAD_LENGTH = len(_HEAD % crc_text(0))


def read_journal(path: pathlib.Path) -> tuple[dict[str, Any] | None, list[Any]]:
  """Identity of the run and its finished steps; (None, []) if there is no journal.

  Raises:
    OSError: it cannot be read.
  """
  try:
    lines = path.read_bytes().split(b'\n')
  except FileNotFoundError:
    return None, []
  identity = _decode(lines[0])
  if not isinstance(identity, dict):  # killed as it began: no step can be finished
    return None, []
  return identity, [e for line in lines[1:] if (e := _decode(line)) is not None]


def write_journal(
  path: pathlib.Path, identity: Mapping[str, Any], entries: Iterable[Any]
) -> None:
  """Writes a whole journal durably, in place of one that is there.

  Raises:
    OSError: the disk refuses.
  """
  write_durably(path, b''.join(_encode(entry) for entry in (identity, *entries)))


def append(file: BinaryIO, entries: Iterable[Any]) -> None:
  """Adds durable lines to a journal that is open.

  Raises:
    OSError: the disk refuses.
  """
  file.writelines(_encode(entry) for entry in entries)
  file.flush()
  sync_file(file.fileno())


def joined(entries: Iterable[Any]) -> list[Any]:
  """One entry per step, of those of all processes that took part in it."""
  steps: dict[int, Any] = {}
  for entry in entries:
    whole = steps.setdefault(entry['step'], {**entry, 'written': {}, 'numbers': None})
    for name, spans in entry['written'].items():
      known = whole['written'].setdefault(name, [])
      known.extend(span for span in spans if span not in known)
    if (numbers := entry['numbers']) is not None:
      all_of_them = whole['numbers'] or {'tensors': {}, 'differ': []}
      whole['numbers'] = {
        'tensors': all_of_them['tensors'] | numbers['tensors'],
        'differ': all_of_them['differ'] + numbers['differ'],
      }
  return list(steps.values())


def _encode(entry: Any) -> bytes:
  text = json.dumps(entry, separators=(',', ':'))
  return f'{_HEAD % crc_text(zlib.crc32(text.encode()))}{text}}}\n'.encode()


def _decode(line: bytes) -> Any:
  """The entry of a line without its newline; None if it is torn or damaged."""
  head, text = line[:_HEAD_LENGTH], line[_HEAD_LENGTH:-1]
  if head != (_HEAD % crc_text(zlib.crc32(text))).encode() or line[-1:] != b'}':
    return None
  return json.loads(text)


class Journal:
  """Appends a line per finished step, from a thread that first syncs its bytes.

  Args:
    path: of the journal; one that is there is replaced at once.
    identity: what the run is.
    entries: finished steps of an earlier run, to be kept.
    sync: makes everything written to the weight files of these names durable.

  `count` is the number of steps that have their line.

  Raises:
    OSError, InputError: the disk refuses; of the thread, from the next `add` or `close`.
  """

  def __init__(
    self,
    path: pathlib.Path,
    identity: dict[str, Any],
    entries: Collection[Any],
    sync: Callable[[Collection[str]], None],
  ):
    self.count = len(entries)
    self._sync = sync
    self._pending: list[tuple[Any, frozenset[str]]] = []
    self._changed = threading.Condition()
    self._closing = threading.Event()
    self._error: BaseException | None = None
    write_journal(path, identity, entries)
    self._file = path.open('ab')
    self._thread = threading.Thread(target=self._run, name='journal', daemon=True)
    self._thread.start()

  def add(self, entry: Any, files: Iterable[str]) -> None:
    """Notes a finished step whose bytes were written to weight files `files`."""
    with self._changed:
      if self._error is not None:
        raise self._error
      self._pending.append((entry, frozenset(files)))
      self._changed.notify()

  def close(self) -> None:
    """Waits until every step that was added has its line, and ends the thread."""
    with self._changed:
      self._closing.set()
      self._changed.notify()
    self._thread.join()
    self._file.close()
    if self._error is not None:
      raise self._error

  def _run(self) -> None:
    try:
      while True:
        with self._changed:
          self._changed.wait_for(lambda: self._pending or self._closing.is_set())
          batch, self._pending = self._pending, []
        if not batch:
          return
        self._append(batch)
        self._closing.wait(EVERY_S)
    except BaseException as error:  # raised in the thread that adds
      with self._changed:
        self._error = error

  def _append(self, batch: list[tuple[Any, frozenset[str]]]) -> None:
    """First the bytes, then the lines that vouch for them."""
    self._sync(sorted(frozenset().union(*(files for _, files in batch))))
    append(self._file, (entry for entry, _ in batch))
    self.count += len(batch)
