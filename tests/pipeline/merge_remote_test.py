"""Whole merges of folders behind addresses: the bytes of the local merge, or no output."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import resmerge_jax
from resmerge_jax.checkpoint import object_store, remote
from resmerge_jax.checkpoint.files import AT_ONCE
from resmerge_jax.cli import compare, greedy_soup, merge, plan, show
from resmerge_jax.errors import InputError, StoppedError
from resmerge_jax.pipeline import merge as merge_module
from resmerge_jax.plan.step_sizes import PROCESS_BYTES
from tests import commands, groups, remotes, resumes
from tests.remotes import COMMIT, SCHEMES

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(params=SCHEMES)
def store(request, tmp_path, monkeypatch):
  pytest.importorskip('huggingface_hub') if request.param == 'hf' else None
  retries = {'max_retries': 2, 'initial_delay': '1ms', 'max_delay': '1ms'}
  monkeypatch.setattr(object_store, '_RETRIES', retries)
  monkeypatch.setattr('time.sleep', lambda _: None)
  with remotes.remote(request.param, tmp_path / 'r') as at_work:
    yield at_work


def uploaded(store: remotes.Remote, group: groups.Group) -> groups.Group:
  return groups.Group(
    store.put(group.base), tuple(store.put(expert) for expert in group.experts)
  )


def files_of(output: pathlib.Path) -> dict[str, bytes]:
  """All but those that say where the inputs were."""
  found = {path.name: path.read_bytes() for path in output.iterdir()}
  return {k: v for k, v in found.items() if k not in ('manifest.json', 'README.md')}


def test_the_output_is_that_of_local_folders(
  group, expected, store, tmp_path, monkeypatch
):
  monkeypatch.setattr(remote, 'PART_BYTES', 5000)
  addresses = uploaded(store, group)
  store.files.faults += [('safetensors', 503)] * 2
  store.files.delay_s = 0.01
  output = tmp_path / 'out'
  manifest = groups.merge(addresses, output, **resumes.SETTINGS)
  assert not store.files.faults
  got = resumes.contents(output)
  for name, content in expected.items():
    if name not in ('manifest.json', 'README.md'):
      assert got[name] == content, name
  local, here = expected['manifest.json'], got['manifest.json']
  assert here['files'] == local['files']
  assert manifest.warnings == tuple(local['warnings'])
  for entry, address in zip(
    here['inputs'], [addresses.base, *addresses.experts], strict=True
  ):
    pinned = f'{address}@{COMMIT}' if store.scheme == 'hf' else address
    assert entry['path'] == pinned
    versions = {file['version'] for file in entry['files'].values()}
    assert versions == {COMMIT} if store.scheme == 'hf' else all(versions)
  # Nothing of a weight file is asked for but ranges, and descriptions without bytes
  # (of Google's a JSON of 100).
  served = [r for r in store.files.weights() if r.status < 300]
  assert all(r.range or r.n_bytes < 150 for r in served)
  n_tensors = sum(entry['bytes'] for entry in local['inputs'])
  n_headers = 2 * 4 * 1000  # read to open a checkpoint, and again to read from it
  n_read = sum(r.n_bytes for r in served if r.range)
  assert n_tensors <= n_read <= n_tensors + n_headers
  assert max(r.n_bytes for r in served) <= 5000
  assert 4 <= store.files.at_once <= AT_ONCE


def test_local_and_remote_sources_together(group, expected, store, tmp_path):
  mixed = group._replace(
    experts=(group.experts[0], store.put(group.experts[1]), group.experts[2])
  )
  groups.merge(mixed, tmp_path / 'out', **resumes.SETTINGS)
  got = resumes.contents(tmp_path / 'out')
  assert got['manifest.json']['files'] == expected['manifest.json']['files']
  kinds = [
    set(next(iter(entry['files'].values()))) for entry in got['manifest.json']['inputs']
  ]
  local = {'bytes', 'mtime_ns'}
  assert kinds == [local, local, {'version'}, local]


def test_a_run_that_the_store_stopped_is_resumed(group, expected, store, tmp_path):
  addresses = uploaded(store, group)
  output = tmp_path / 'out'
  config = groups.config_of(addresses, output, **resumes.SETTINGS)
  read = remote.RemoteFile.read
  n_reads = 0

  def broken_off(file, begin, end):
    nonlocal n_reads
    n_reads += 1
    if n_reads == 60:
      store.files.faults += [('safetensors', 503)] * 99
    return read(file, begin, end)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(remote.RemoteFile, 'read', broken_off)
    with pytest.raises(StoppedError, match=r'cannot be read: .*503') as stopped:
      resmerge_jax.merge(config)
  assert any('--resume continues' in note for note in stopped.value.__notes__)
  assert not output.exists()
  store.files.faults.clear()
  store.files.log.clear()
  changed = store.path(addresses.experts[1]) / 'model.safetensors'
  time = changed.stat().st_mtime_ns
  if store.scheme != 'hf':
    os.utime(changed, ns=(0, 0))
    with pytest.raises(InputError, match='it was another merge') as other:
      resumes.resume(addresses, output)
    assert f'{changed.name}' in str(other.value)
    os.utime(changed, ns=(time, time))
  manifest = resumes.resume(addresses, output)
  assert any(note.startswith('resuming: ') for note in manifest.notes)
  for name, content in files_of(output).items():
    assert content == expected[name], name
  again = resumes.resume(addresses, output)
  assert again.verified_only


@pytest.mark.parametrize('store', ['gs', 's3'], indirect=True)  # a commit cannot change
def test_a_file_that_changes_leaves_no_output(group, store, tmp_path, monkeypatch):
  addresses = uploaded(store, group)
  stream = merge_module.stream

  def late(work):
    result = stream(work)
    file = store.path(addresses.experts[0]) / 'tokenizer.json'
    os.utime(store.path(addresses.base) / 'config.json', ns=(0, 0))
    os.utime(file, ns=(0, 0))  # of an expert: nobody reads it again
    return result

  monkeypatch.setattr(merge_module, 'stream', late)
  with pytest.raises(InputError, match='were changed while they were merged') as error:
    groups.merge(addresses, tmp_path / 'out', **resumes.SETTINGS)
  assert len(error.value.problems) == 1
  assert f'{addresses.base}/config.json: version ' in error.value.problems[0]
  assert not (tmp_path / 'out').exists()


def test_commands_take_addresses(group, store, tmp_path):
  addresses = uploaded(store, group)
  done = commands.run(show, addresses.base, addresses.experts[0])
  assert done.status == 0, done.err
  assert done.out.startswith(f'base  {store.scheme}://')
  done = commands.run(compare, addresses.experts[0], group.experts[0])
  assert (done.status, done.err) == (0, '')
  experts = ','.join(addresses.experts)
  flags = [f'--base={addresses.base}', f'--experts={experts}', '--output']
  done = commands.run(plan, *flags, tmp_path / 'out')
  assert done.status == 0, done.err
  assert "experts 'e0'" not in done.err
  done = commands.run(plan, *flags, 'gs://bucket/out')
  assert done.err.startswith(
    'error: output gs://bucket/out: only local folders are written\n'
  )
  done = commands.run(greedy_soup, *flags, tmp_path / 'out', '--score=echo {model}')
  assert done.err.startswith('error: experts that --score cannot open\n')
  recipe = tmp_path / 'recipe.yaml'
  models = [{'model': path, 'parameters': {'weight': 1}} for path in addresses.experts]
  recipe.write_text(
    json.dumps(
      {
        'merge_method': 'task_arithmetic',
        'base_model': addresses.base,
        'models': models,
      }
    )
  )
  done = commands.run(plan, f'--mergekit_yaml={recipe}', '--output', tmp_path / 'out')
  assert done.status == 0, done.err


def test_without_an_address_nothing_is_loaded_and_no_socket_opened(group, tmp_path):
  script = f"""
import sys

def refuse(event, args):
  assert not event.startswith('socket.'), event

sys.addaudithook(refuse)
import resmerge_jax
resmerge_jax.merge(resmerge_jax.MergeConfig(
  base={str(group.base)!r}, experts={[str(e) for e in group.experts]!r},
  output={str(tmp_path / 'out')!r}, method=resmerge_jax.TaskArithmetic(),
  memory_budget={PROCESS_BYTES + 24_000}))
print(sys.modules.keys() & {{'tensorstore', 'fsspec', 'huggingface_hub', 'httpx'}})
"""
  done = subprocess.run(
    [sys.executable, '-c', script],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == 'set()\n', done.stderr
  assert (tmp_path / 'out' / 'config.json').exists()


def test_the_command_of_the_manual(group, tmp_path, monkeypatch):
  pytest.importorskip('huggingface_hub')
  text = (ROOT / 'docs' / 'remote.md').read_text()
  (line,) = re.findall(r'^python -m tools\.merge (.*)$', text, re.MULTILINE)
  places = {
    'hf': f'OWNER/BASE/{COMMIT}',
    'gs': 'my-bucket/MATH',
    's3': 'my-bucket/CODE',
  }
  monkeypatch.chdir(tmp_path)
  with contextlib.ExitStack() as stack:
    for (scheme, place), folder in zip(
      places.items(), (group.base, *group.experts), strict=False
    ):
      at_work = stack.enter_context(remotes.remote(scheme, tmp_path / scheme))
      shutil.copytree(folder, at_work.root / place)
    shutil.copytree(group.experts[2], 'TOOL')
    settings = ['--method=task_arithmetic']
    done = commands.run(merge, *line.split(), *settings)
  assert done.status == 0, done.err
  manifest = json.loads((tmp_path / 'MERGED' / 'manifest.json').read_text())
  assert [entry['id'] for entry in manifest['inputs']] == [
    'BASE',
    'MATH',
    'CODE',
    'TOOL',
  ]
  assert manifest['inputs'][0]['path'] == f'hf://OWNER/BASE@{COMMIT}'
