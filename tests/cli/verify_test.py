"""The verify command and its check: every damaged, cut or missing file and tensor."""

import json
import pathlib
import shutil

import pytest

from resmerge_jax.cli import verify
from tests import commands, groups, resumes

TENSOR = 'model.layers.3.mlp.up_proj.weight'


@pytest.fixture(scope='module')
def merged(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('merged')
  settings = {**resumes.SETTINGS, 'method': groups.MEAN}
  return groups.merge(resumes.write_group(path), path / 'out', **settings).output


@pytest.fixture
def output(merged, tmp_path) -> pathlib.Path:
  """A copy to damage."""
  return shutil.copytree(merged, tmp_path / 'out')


@pytest.fixture
def manifest(output):
  return json.loads((output / 'manifest.json').read_text())


def flip(path: pathlib.Path, place: int) -> None:
  raw = bytearray(path.read_bytes())
  raw[place] ^= 1
  path.write_bytes(raw)


def problems(output) -> list[str]:
  """What the command finds wrong, which it says in one form."""
  done = commands.run(verify, output)
  assert (done.status, done.err) == (1, ''), done
  first, *found, last = done.out.splitlines()
  assert first == f'{output}: {len(found)} problems'
  assert last.startswith('What to do: copy the folder again')
  return [line.removeprefix('  - ') for line in found]


def test_an_output_as_it_was_written(output, manifest):
  names = {p.name for p in output.iterdir()} - {'manifest.json', 'README.md'}
  assert set(manifest['files']) == names
  assert set(manifest['tensors']) == set(resumes.tensors(0))
  (output / 'README.md').write_text('my own words')
  done = commands.run(verify, output)
  assert (done.status, done.err) == (0, '')
  assert done.out.startswith(f'{output}: {len(names)} files and 8 tensors (')
  assert done.out.endswith(') are as they were written\n')


def test_a_flipped_byte_names_its_tensor(output, manifest):
  place = manifest['tensors'][TENSOR]
  flip(output / place['file'], place['end'] - 1)
  (problem,) = problems(output)
  assert problem.startswith(f'{TENSOR}: damaged: crc32 ')
  assert problem.endswith(
    f'expected {place["crc32"]} (bytes {place["begin"]} to {place["end"]} of '
    f'{place["file"]})'
  )


def test_a_flipped_byte_of_a_header(output, manifest):
  file = manifest['tensors'][TENSOR]['file']
  flip(output / file, 20)
  assert problems(output) == [f'{file}: its header is damaged']


def test_a_file_that_is_cut_or_longer(output, manifest):
  file = manifest['tensors'][TENSOR]['file']
  held = [name for name, p in manifest['tensors'].items() if p['file'] == file]
  size = (output / file).stat().st_size
  with (output / file).open('r+b') as opened:
    opened.truncate(size - 1)
  last = max(held, key=lambda name: manifest['tensors'][name]['end'])
  assert problems(output) == [
    f'{file}: {size - 1} bytes, expected {size}',
    f'{last}: cut off at the end of {file}',
  ]
  with (output / file).open('r+b') as opened:
    opened.truncate(9)
  assert len(problems(output)) == 1 + len(held)
  with (output / 'tokenizer.json').open('a') as opened:
    opened.write(' ')
  assert 'tokenizer.json: damaged: 19 bytes, expected 18' in problems(output)


def test_missing_and_foreign_files(output, manifest):
  file = manifest['tensors'][TENSOR]['file']
  n = sum(place['file'] == file for place in manifest['tensors'].values())
  for name in (file, 'config.json'):
    (output / name).unlink()
  (output / 'consolidated.safetensors').touch()
  flip(output / 'model.safetensors.index.json', 7)
  assert sorted(problems(output)) == sorted(
    [
      f'{file}: missing ({n} tensors): No such file or directory',
      'config.json: missing: No such file or directory',
      'consolidated.safetensors: not part of the merge',
      'model.safetensors.index.json: damaged: its checksum differs',
    ]
  )


def test_folders_that_cannot_be_verified(output, tmp_path):
  def refused(*args) -> str:
    done = commands.run(verify, *args)
    assert (done.status, done.out) == (1, '')
    return done.err

  assert 'error: 0 folders given, one is wanted' in refused()
  assert 'manifest.json: cannot be read: No such file' in refused(tmp_path / 'none')
  path = output / 'manifest.json'
  manifest = json.loads(path.read_text())
  for content in ('{', '[]', '{"files": {"a": 3}, "tensors": {}}'):
    path.write_text(content)
    assert 'not a manifest with checksums (' in refused(output)
  del manifest['tensors'][TENSOR]['crc32']
  path.write_text(json.dumps(manifest))
  assert "manifest with checksums (KeyError('crc32'))" in refused(output)


def test_help_has_an_example():
  done = commands.run(verify, '--help')
  assert done.status == 0
  assert 'python -m tools.verify out/merged' in done.out
