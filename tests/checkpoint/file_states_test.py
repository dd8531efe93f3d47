"""Files that change or vanish while they are merged are named, all of them."""

import os

import numpy as np
import pytest

from resmerge_jax.checkpoint.file_states import check_unchanged, file_states
from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.reader import CheckpointReader
from resmerge_jax.errors import InputError, StoppedError
from tests import folders


@pytest.fixture
def opened(tmp_path):
  return open_checkpoint(folders.write_folder(tmp_path / 'm', n_shards=2))


def test_which_files_count(opened):
  weights = {*opened.shard_files, 'config.json'}
  assert file_states(opened, copied=False).keys() == weights
  assert file_states(opened, copied=True).keys() == weights | {*folders.TOKENIZER}


def test_changed_and_vanished_files_are_named_together(opened):
  states = file_states(opened, copied=True)
  check_unchanged([(opened, states)])
  first, second = (opened.path / name for name in opened.shard_files)
  second.unlink()
  with pytest.raises(StoppedError) as gone:
    check_unchanged([(opened, states)])
  assert str(gone.value).startswith(
    'input files vanished while they were merged\n'
    f"  - checkpoint 'm', {second} cannot be read: No such file or directory\n"
  )
  os.truncate(first, 5)
  os.utime(opened.path / 'config.json', ns=(0, 0))
  with pytest.raises(InputError) as changed:
    check_unchanged([(opened, states)])
  assert not isinstance(changed.value, StoppedError)
  problems = '\n'.join(changed.value.problems)
  assert f'{first}: 5 bytes, it had {states[first.name].bytes}' in problems
  assert f'{opened.path}/config.json: ' in problems
  assert str(second) in problems
  with pytest.raises(StoppedError, match='cannot be read: No such file'):
    file_states(opened, copied=True)


def test_a_reader_refuses_another_file_under_the_same_name(opened):
  states = file_states(opened, copied=False)
  ref = next(iter(opened.tensors.values()))
  os.utime(opened.path / ref.file, ns=(0, 0))
  with (
    CheckpointReader(opened, states) as reader,
    pytest.raises(InputError, match='was changed after its header had been read'),
  ):
    reader.read_into(ref, 0, 0, np.empty(0, np.uint8))
