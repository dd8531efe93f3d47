"""Folders behind addresses, against stores on loopback: what is read, what is refused."""

import errno
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest

from resmerge_jax.checkpoint import object_store, remote
from resmerge_jax.checkpoint.failed_request import failed
from resmerge_jax.checkpoint.file_states import check_unchanged, file_states
from resmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from resmerge_jax.checkpoint.reader import CheckpointReader
from resmerge_jax.checkpoint.remote import (
  check_local,
  folder_name,
  scheme_of,
  telling_names,
)
from resmerge_jax.errors import InputError, StoppedError
from tests import folders, remotes
from tests.remotes import COMMIT, LATER, SCHEMES, TOKEN


@pytest.fixture(scope='module', params=SCHEMES)
def store(request, tmp_path_factory):
  pytest.importorskip('huggingface_hub') if request.param == 'hf' else None
  with remotes.remote(request.param, tmp_path_factory.mktemp('store') / 'r') as at_work:
    yield at_work


@pytest.fixture(params=SCHEMES)
def fresh(request, tmp_path):
  """A store for one test, which may spoil it."""
  pytest.importorskip('huggingface_hub') if request.param == 'hf' else None
  with remotes.remote(request.param, tmp_path / 'r') as at_work:
    yield at_work


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
  """Retries wait for milliseconds."""
  retries = {'max_retries': 2, 'initial_delay': '1ms', 'max_delay': '1ms'}
  monkeypatch.setattr(object_store, '_RETRIES', retries)
  monkeypatch.setattr('time.sleep', lambda _: None)


def read_all(checkpoint: Checkpoint, states=None) -> dict[str, bytes]:
  found = {}
  with CheckpointReader(checkpoint, states) as reader:
    for name, ref in checkpoint.tensors.items():
      out = np.empty(ref.nbytes, np.uint8)
      reader.read_into(ref, 0, ref.rows, out)
      found[name] = out.tobytes()
  return found


def error_of(address: str, **settings) -> str:
  with pytest.raises(InputError) as error:
    open_checkpoint(address, **settings)
  return str(error.value)


def test_a_remote_folder_is_the_local_one(store, tmp_path):
  files = {**folders.TOKENIZER, 'note 1.txt': 'a', '.hidden': 'b', 'extra.bin': 'c'}
  path = folders.write_folder(tmp_path / 'Model-1', n_shards=3, files=files)
  (path / 'sub').mkdir()
  (path / 'sub' / 'deep.txt').write_text('d')
  local, got = open_checkpoint(path), open_checkpoint(store.put(path))
  place = {'hf': f'hf://me/Model-1@{COMMIT}'}
  assert str(got.path) == place.get(
    store.scheme, f'{store.scheme}://bucket/models/Model-1'
  )
  assert got.id == local.id == 'Model-1'
  assert got.is_remote
  assert not local.is_remote
  for field in ('config', 'tensors', 'shard_files', 'side_files', 'header_sha256'):
    assert getattr(got, field) == getattr(local, field), field
  assert [w.replace(str(got.path), str(path)) for w in got.warnings] == list(
    local.warnings
  )
  assert read_all(got) == read_all(local)


def test_weights_are_read_in_ranges_and_no_more_than_asked(
  store, tmp_path, monkeypatch
):
  monkeypatch.setattr(remote, 'PART_BYTES', 24)
  path = folders.write_folder(tmp_path / 'Ranges', n_shards=2)
  address = store.put(path)
  got = open_checkpoint(address)
  name = 'model.layers.1.mlp.up_proj.weight'
  ref = got.tensors[name]
  with CheckpointReader(got, file_states(got, copied=False)) as reader:
    reader.read_into(ref, 0, 0, np.empty(0, np.uint8))  # opens the file
    store.files.log.clear()
    out = np.empty(5 * 8, np.uint8)
    reader.read_into(ref, 2, 7, out)
  begin = ref.start + 2 * 8
  ranges = [(r.range, r.n_bytes) for r in store.files.weights()]
  assert ranges == [
    (f'bytes={begin}-{begin + 23}', 24),
    (f'bytes={begin + 24}-{begin + 39}', 16),
  ]
  assert out.tobytes() == read_all(open_checkpoint(path))[name][2 * 8 : 7 * 8]


def test_transient_errors_are_retried_and_then_stop_the_run(fresh, tmp_path):
  path = folders.write_folder(tmp_path / 'M')
  address = fresh.put(path)
  fresh.files.faults += [
    ('config.json', 503),
    ('safetensors', 503),
    ('safetensors', 429),
  ]
  got = open_checkpoint(address)
  assert not fresh.files.faults
  ref = next(iter(got.tensors.values()))
  with CheckpointReader(got) as reader:
    reader.read_into(ref, 0, 1, np.empty(ref.cols * 2, np.uint8))
    fresh.files.faults += [('safetensors', 500)] * 99
    with pytest.raises(StoppedError) as error:
      reader.read_into(ref, 0, 1, np.empty(ref.cols * 2, np.uint8))
  text = str(error.value)
  assert text.startswith(
    f"checkpoint 'M', {got.path}/model.safetensors cannot be read: "
  )
  assert '500' in text
  assert 'then run the same command' in text


def test_files_that_change_are_named(fresh, tmp_path):
  path = folders.write_folder(tmp_path / 'M', n_shards=2)
  address = fresh.put(path)
  got = open_checkpoint(address)
  states = file_states(got, copied=True)
  assert states.keys() == {*got.shard_files, 'config.json', *folders.TOKENIZER}
  check_unchanged([(got, states)])
  first, second = (fresh.path(address) / name for name in got.shard_files)
  ref = next(ref for ref in got.tensors.values() if ref.file == first.name)
  if fresh.scheme == 'hf':  # a commit cannot change; main may move on
    assert {state.version for state in states.values()} == {COMMIT}
    shutil.copytree(fresh.path(address), fresh.path(address, LATER))
    fresh.server.refs['main'] = LATER
    check_unchanged([(got, states)])
    assert str(open_checkpoint(address).path).endswith(f'@{LATER}')
    assert str(open_checkpoint(f'{address}@{COMMIT}').path).endswith(f'@{COMMIT}')
    return
  with CheckpointReader(got, states) as reader:
    out = np.empty(ref.nbytes, np.uint8)
    reader.read_into(ref, 0, ref.rows, out)
    before = states[first.name].version
    os.utime(first, ns=(0, 0))
    with pytest.raises(InputError, match='was changed while it was read'):
      reader.read_into(ref, 0, ref.rows, out)
  with (
    CheckpointReader(got, states) as reader,
    pytest.raises(InputError, match='was changed after its header had been read'),
  ):
    reader.read_into(ref, 0, ref.rows, out)
  second.unlink()
  with pytest.raises(InputError) as changed:
    check_unchanged([(got, states)])
  assert str(changed.value).startswith(
    'input files were changed while they were merged\n'
    f"  - checkpoint 'M', {address}/{first.name}: version "
  )
  assert f'it was {before}' in str(changed.value)
  assert f'{second.name} cannot be read: No such file' in str(changed.value)


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda data: data[:-3], 'truncated: {} bytes declared, {} bytes present'),
    (lambda data: data + b'abc', '3 bytes after the last tensor belong to no tensor'),
    (lambda data: data[:5], 'truncated: 5 bytes present'),
    (lambda data: data[:20], 'truncated inside the header'),
    (lambda _: b'', 'truncated: 0 bytes present'),
  ],
)
def test_broken_files_are_told_as_local_ones_are(store, tmp_path, spoil, message):
  path = folders.write_folder(tmp_path / tmp_path.name)
  file = path / 'model.safetensors'
  content = file.read_bytes()
  file.write_bytes(spoil(content))
  want = error_of(path)
  address = store.put(path)
  got = error_of(address)
  if store.scheme == 'hf':
    address += f'@{COMMIT}'
  assert got == want.replace(str(path), address)
  assert message.format(len(content), file.stat().st_size) in got


def test_folders_that_cannot_be_listed(fresh):
  bucket = 'me' if fresh.scheme == 'hf' else 'bucket'
  address = f'{fresh.scheme}://{bucket}/gone'
  text = error_of(address, role='base')
  missing = 'no such model' if fresh.scheme == 'hf' else 'no such folder'
  assert text.startswith(f'base {address}: {missing}\nWhat to do: check the address; ')
  sign_in = {
    'gs': '`gcloud auth application-default login`',
    's3': 'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
    'hf': '`hf auth login` or HF_TOKEN',
  }[fresh.scheme]
  assert f'if it is private, sign in: {sign_in}' in text
  # Google's listing ends empty where it was refused; a read tells.
  n_requests = 2 if fresh.scheme == 'gs' else 1
  fresh.server.faults += [('', 403)] * n_requests
  text = error_of(address, role='base')
  assert text.startswith(f'base {address}: access denied: ')
  assert f'What to do: sign in: {sign_in}' in text
  fresh.server.faults += [('', 500)] * 99
  with pytest.raises(StoppedError, match=f'base {address}: cannot be listed: .*500'):
    open_checkpoint(address, role='base')


def test_an_object_store_that_is_not_there(monkeypatch):
  monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:1')
  monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'key')
  monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
  monkeypatch.setenv('AWS_REGION', 'here')
  with pytest.raises(StoppedError, match=r'cannot be listed: .*Could not connect'):
    open_checkpoint('s3://bucket/model')


@pytest.mark.parametrize('scheme', ['gs', 's3'])  # the hub's client has its own limit
def test_an_answer_that_does_not_come(scheme, tmp_path, monkeypatch):
  monkeypatch.setattr(object_store, '_TIMEOUT_S', 0)
  with (
    remotes.remote(scheme, tmp_path / 'r'),
    pytest.raises(StoppedError, match='no answer within 0 s'),
  ):
    open_checkpoint(f'{scheme}://bucket/models/M')


def test_the_hub_tells_what_is_wrong(tmp_path, monkeypatch):
  pytest.importorskip('huggingface_hub')
  with remotes.remote('hf', tmp_path / 'r') as hub:
    address = hub.put(folders.write_folder(tmp_path / 'M'))
    assert error_of(f'{address}@v2').startswith(
      f'checkpoint {address}@v2: no such revision\n'
    )
    hub.server.refs['refs/pr/1'] = COMMIT
    assert open_checkpoint(f'{address}@refs/pr/1').id == 'M'
    assert {r.token for r in hub.server.log} == {f'Bearer {TOKEN}'}
    assert {r.token for r in hub.files.log} == {None}
    hub.files.whole = True
    assert read_all(open_checkpoint(address)) == read_all(
      open_checkpoint(tmp_path / 'M')
    )
  assert error_of('hf://M') == (
    'checkpoint hf://M: not the address of a model\n'
    'What to do: write hf://OWNER/NAME[@REVISION]'
  )
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  assert error_of('hf://me/M', role='base') == (
    'base hf://me/M: the package huggingface_hub is not installed\n'
    'Why it matters: it finds and reads the files of the hub\n'
    "What to do: pip install 'resmerge-jax[hf]'"
  )


@pytest.mark.parametrize(
  ('paths', 'names'),
  [
    (['a/x', 'b/y'], [None, None]),
    (['maths/step_4', 'code/step_4'], ['maths', 'code']),
    (['/r/maths/1/bf16', '/r/code/1/bf16', 'base'], ['maths', 'code', None]),
    (['a/x', 'b/x', 'c/y', 'd/y'], ['a', 'b', 'c', 'd']),
    (['r/a/x', 'r/b/x', 's/a/y', 's/b/y'], [None] * 4),  # a twice, r twice
    (['a/x', 'b/x', 'old/a'], [None] * 3),
    (['/x', '/a/x'], [None, None]),
    (['../x', 'a/x'], [None, None]),
    (['~/x', '/data/x'], [None, None]),
    (['gs://k/x', 's3://k/x'], [None, None]),
    (['hf://o/n', 'hf://p/n@refs/pr/2'], ['o', 'p']),
    (['a/x', 'b/a/x', 'c/a/x'], [None] * 3),  # one of them has too few names
    (['gs://k/a/x', 's3://k/b/x', pathlib.Path('c/x')], ['a', 'b', 'c']),
    (['a/x', 'a/x'], [None, None]),
    (['hf://o/n@1', 'hf://o/n@2', 'hf://p/n'], [None] * 3),
    ([], []),
  ],
)
def test_folders_that_are_called_alike_have_other_names(paths, names):
  assert telling_names(paths) == tuple(names)


def test_addresses():
  assert [scheme_of(p) for p in ('gs://b/m', 's3://b', 'hf://o/n@v')] == [*SCHEMES]
  assert [scheme_of(p) for p in ('a/b', '/a:/b', pathlib.Path('x'), 'gs:/b')] == [
    None
  ] * 4
  names = ['gs://b/m/', 's3://b', 'hf://o/n@refs/pr/1', 'a/b@c', pathlib.Path('a/b')]
  assert [folder_name(name) for name in names] == ['m', 'b', 'n', 'b@c', 'b']
  with pytest.raises(InputError, match='az://b/m: addresses of this kind are not read'):
    scheme_of('az://b/m')
  with pytest.raises(InputError, match='an address given as a path') as error:
    scheme_of(pathlib.Path('gs://b/m'))
  assert 'What to do: give it as text: gs://...' in str(error.value)
  for address in ('s3://', 'gs://UPPER/m'):
    text = error_of(address, role='base')
    assert text.startswith(f'base {address}: not the address of a folder: ')
    assert text.endswith(f'What to do: write {address[:2]}://BUCKET/PATH')
  check_local('out', 'output')
  with pytest.raises(
    InputError, match='output gs://b/m: only local folders are written'
  ):
    check_local('gs://b/m', 'output')


def test_codes_become_the_errors_of_files():
  assert isinstance(failed(ValueError('x'), 'f', errno.EACCES), PermissionError)
  long = failed(ValueError('x' * 400), 'f')
  assert long.strerror == 'x' * 300 + ' ...'
  assert failed(ValueError(), 'f').strerror == 'ValueError'
