"""The journal: a line only for what is durable, and none that is torn counts."""

import json
import threading

import pytest

from resmerge_jax.writers import journal
from resmerge_jax.writers.journal import Journal, read_journal

IDENTITY = {'seed': 0, 'name': 'é\n'}
ENTRIES = [{'step': i, 'numbers': [0.1 * i, float('inf')]} for i in range(3)]


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'journal-00000.jsonl'


def write(path, entries, kept=()):
  found = Journal(path, IDENTITY, kept, list)
  for entry in entries:
    found.add(entry, ['a'])
  found.close()
  assert found.count == len(entries) + len(kept)


def test_what_was_added_is_read_back_exactly(path):
  assert read_journal(path) == (None, [])
  write(path, ENTRIES[1:], ENTRIES[:1])
  assert read_journal(path) == (IDENTITY, ENTRIES)
  for line in path.read_text().splitlines():
    assert json.loads(line).keys() == {'crc32', 'entry'}
  write(path, [], ENTRIES)
  assert read_journal(path) == (IDENTITY, ENTRIES)
  assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_every_cut_leaves_whole_lines_only(path):
  write(path, ENTRIES)
  raw = path.read_bytes()
  ends = [i for i, byte in enumerate(raw) if byte == ord('\n')]
  for n in range(len(raw)):
    path.write_bytes(raw[:n])
    n_lines = sum(end <= n for end in ends)
    identity = IDENTITY if n_lines else None
    assert read_journal(path) == (identity, ENTRIES[: max(n_lines - 1, 0)]), n


def test_a_flipped_bit_costs_its_line(path):
  write(path, ENTRIES)
  raw = path.read_bytes()
  lines = raw.split(b'\n')
  place = raw.index(lines[2]) + 30
  path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
  assert read_journal(path) == (IDENTITY, [ENTRIES[0], ENTRIES[2]])


def test_a_line_follows_the_sync_of_its_bytes(path, monkeypatch):
  monkeypatch.setattr(journal, 'EVERY_S', 0)
  syncing, go_on, synced = threading.Event(), threading.Event(), []

  def sync(files):
    synced.append(files)
    syncing.set()
    assert go_on.wait(10)

  found = Journal(path, IDENTITY, (), sync)
  found.add(ENTRIES[0], ['a', 'b'])
  assert syncing.wait(10)
  found.add(ENTRIES[1], ['b'])  # does not wait
  found.add(ENTRIES[2], ['c'])
  assert read_journal(path) == (IDENTITY, [])
  go_on.set()
  found.close()
  assert read_journal(path) == (IDENTITY, ENTRIES)
  assert synced == [['a', 'b'], ['b', 'c']]  # what came meanwhile is synced at once


def test_a_failing_sync_writes_no_line_and_ends_the_run(path):
  failed = threading.Event()

  def fail(files):
    failed.set()
    raise OSError(5, 'Input/output error', *files)

  found = Journal(path, IDENTITY, (), fail)
  found.add(ENTRIES[0], ['a'])
  assert failed.wait(10)
  found._thread.join(10)
  with pytest.raises(OSError, match='Input/output error'):
    found.add(ENTRIES[1], ['a'])
  with pytest.raises(OSError, match='Input/output error'):
    found.close()
  assert found.count == 0
  assert read_journal(path) == (IDENTITY, [])
