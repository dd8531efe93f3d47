"""What is refused as an output before any weight is read."""

import os
import shutil

import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.writers.folder import check_output
from resmerge_jax.writers.partial import claim, old_path, partial_path, release


def refusal(output, inputs=(), needed_bytes=0, overwrite=False) -> str:
  with pytest.raises(InputError) as caught:
    check_output(output, inputs, needed_bytes, overwrite)
  return str(caught.value)


def test_a_new_or_empty_folder_is_fine_and_nothing_is_touched(tmp_path):
  assert check_output(tmp_path / 'not' / 'yet', [], 10, False) == []
  (tmp_path / 'empty').mkdir()
  assert check_output(tmp_path / 'empty', [], 10, False) == []
  assert os.listdir(tmp_path) == ['empty']


def test_a_filled_folder_needs_overwrite(tmp_path):
  output = tmp_path / 'out'
  output.mkdir()
  (output / '.hidden').touch()
  assert refusal(output) == (
    f'output {output} is not empty\n'
    'Why it matters: its files would be lost or mixed with the new ones\n'
    'What to do: choose another output folder, or pass --overwrite to replace all of it'
  )
  assert check_output(output, [], 0, True) == [
    f'{output} is replaced when the new output is complete (--overwrite)'
  ]


def test_a_file_is_never_replaced(tmp_path):
  (tmp_path / 'out').touch()
  for overwrite in (False, True):
    assert f'output {tmp_path}/out is a file' in refusal(
      tmp_path / 'out', overwrite=overwrite
    )
  message = refusal(tmp_path / 'out' / 'deeper' / 'still')
  assert f'cannot be created: {tmp_path}/out is a file' in message


def test_all_overlaps_with_inputs_are_named_through_links(tmp_path):
  output = tmp_path / 'out'
  for folder in ('out/inner', 'linked'):
    (tmp_path / folder).mkdir(parents=True)
  (tmp_path / 'alias').symlink_to(output)
  (output / 'w.safetensors').touch()
  (tmp_path / 'linked' / 'w.safetensors').symlink_to(output / 'w.safetensors')
  inputs = [tmp_path / name for name in ('alias', 'out/inner', 'linked', '')]
  message = refusal(output, inputs, overwrite=True)
  assert message == (
    f'output {output} and the inputs overlap\n'
    f'  - {tmp_path}/alias is the output itself\n'
    f'  - {tmp_path}/out/inner lies inside the output\n'
    f'  - {tmp_path}/linked/w.safetensors links into the output\n'
    f'  - the output lies inside {tmp_path}\n'
    'Why it matters: writing the output would change or delete what is being merged\n'
    'What to do: choose an output folder outside every input'
  )
  assert 'lies inside' in refusal(tmp_path / 'alias' / 'new', [output])
  (tmp_path / 'base').mkdir()
  assert check_output(tmp_path / 'base2', [tmp_path / 'base'], 0, False) == []


def test_the_disk_must_hold_the_output(tmp_path, monkeypatch):
  usage = shutil._ntuple_diskusage(100 * 2**30, 99 * 2**30, 2**30)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  output = tmp_path / 'a' / 'out'
  assert check_output(output, [], 2**30, False) == []
  assert refusal(output, needed_bytes=2**30 + 2**20 * 300) == (
    f'not enough space on the disk of {tmp_path}: the output takes 1.29 GiB, 1 GiB free\n'
    'What to do: free some space, or choose an output on another disk'
  )
  left = partial_path(output) / 'new' / 'w.part'  # counted as free: it will be removed
  left.parent.mkdir(parents=True)
  left.write_bytes(b'x' * 2**20)
  notes = check_output(output, [], 2**30 + 2**19, False)
  assert notes == [
    f'a run that died left 1 MiB in {partial_path(output)}: removed before writing'
  ]
  assert left.exists()


def test_a_parent_without_permission_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'access', lambda *_: False)  # tests may run as root
  assert refusal(tmp_path / 'new' / 'out') == (
    f'output {tmp_path}/new/out cannot be created: no permission to write in {tmp_path}\n'
    'Why it matters: the output is prepared in a folder beside it\n'
    'What to do: choose another output folder'
  )


def test_a_mount_point_cannot_be_renamed_over(tmp_path, monkeypatch):
  monkeypatch.setattr(os.path, 'ismount', lambda path: path == tmp_path / 'out')
  message = refusal(tmp_path / 'out')
  assert 'is a mount point' in message
  assert 'What to do: give a folder inside it' in message


@pytest.mark.parametrize('kind', ['home', 'current'])
def test_overwrite_spares_folders_nobody_means(tmp_path, monkeypatch, kind):
  inside = tmp_path / 'out' / 'user'
  inside.mkdir(parents=True)
  if kind == 'home':
    monkeypatch.setenv('HOME', str(inside))
  else:
    monkeypatch.chdir(inside)
  message = refusal(tmp_path / 'out', overwrite=True)
  assert f'output {tmp_path}/out holds the {kind} folder' in message
  assert '--overwrite deletes everything in the output folder' in message


def test_an_output_being_written_is_in_use(tmp_path):
  output = tmp_path / 'out'
  fd = claim(output)
  try:
    assert refusal(output) == (
      f'another merge is writing {output}: it holds the lock in '
      f'{tmp_path}/.out.resmerge-partial\n'
      'What to do: wait until it ends, or choose another output'
    )
  finally:
    release(output, fd)
  assert check_output(output, [], 0, False) == []


def test_a_run_that_died_between_the_renames_is_reported(tmp_path):
  output = tmp_path / 'out'
  old_path(output).mkdir()
  (old_path(output) / 'config.json').touch()
  message = refusal(output)
  assert (
    f'is not empty: a run died replacing it, its content is {tmp_path}/.out' in message
  )
  assert 'rename that folder back' in message
  assert check_output(output, [], 0, True) == [
    f'a run died replacing {output}: its content is put back from {old_path(output)}',
    f'{output} is replaced when the new output is complete (--overwrite)',
  ]
  output.mkdir()
  (output / 'config.json').touch()
  assert check_output(output, [], 0, True)[0] == (
    f'a run that died left the output it replaced, {old_path(output)}: removed'
  )


def test_a_name_too_long_is_one_readable_message(tmp_path):
  message = refusal(tmp_path / ('x' * 250))
  assert 'cannot be used: File name too long' in message
