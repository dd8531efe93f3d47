"""Merges by one process and by several, of the same settings."""

import contextlib
import json
import pathlib

import jax
import pytest

import resmerge_jax
from tests import launches, resumes, several

DEVICES = 8  # of all processes
# One start for several merges; each of a name and the settings that differ.
MERGES = {
  'automatic': {},
  'layers': {'mesh': 'layer:8'},
  'rows': {'mesh': 'row:8', 'output_dtype': 'float32'},
  'both': {'mesh': 'layer:2,row:4'},
  'whole': {'whole_files': True, 'max_shard_size': '20kB'},  # a layer per file
  'means': {'method': {'name': 'task_arithmetic'}, 'mesh': 'row:8'},
  'counts': {'method': {'name': 'ram'}},  # scans the whole model first
  'trims': {'method': {'name': 'ties'}},
  'orbax': {
    'output_format': 'orbax',
    'whole_files': True,
    'method': {'name': 'task_arithmetic'},
  },
  'formats': {'output_format': 'both', 'method': {'name': 'task_arithmetic'}},
}
MANY = """
import json, pathlib, sys
from resmerge_jax import merge, processes
from resmerge_jax.config import config_from
flags = dict(word[2:].split('=', 1) for word in sys.argv[2:])
numbers = int(flags['num_processes']), int(flags['process_id'])
processes.start(flags['coordinator'], *numbers)
for values in json.loads(sys.argv[1]):
  merge(config_from(values))
"""


def values_of(group, name: str, merge: str) -> dict:
  """Settings of one of MERGES into folder `name`, as JSON knows them."""
  values = {'base': str(group.base), 'experts': [str(path) for path in group.experts]}
  return {**values, 'output': name, **several.SETTINGS, **MERGES[merge]}


def merge_here(work: pathlib.Path, group, merge: str, n_devices=DEVICES, **more):
  """One of MERGES by this process, in folder `work`."""
  work.mkdir(exist_ok=True)
  devices = jax.devices()[:n_devices]
  with contextlib.chdir(work), pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'devices', lambda: devices)
    patch.setattr(jax, 'local_devices', lambda: devices)
    values = {**values_of(group, merge, merge), **more}
    return resmerge_jax.merge(resmerge_jax.config.config_from(values))


def merge_by(n_processes: int, work: pathlib.Path, group, *names: str) -> None:
  """MERGES of these names (given twice: once more) by several processes."""
  seen, merges = set(), []
  for name in names:
    merges.append(values_of(group, name + '_again' * (name in seen), name))
    seen.add(name)
  words = launches.joining(n_processes, [json.dumps(merges)])
  for ended in launches.run(work, words, devices=DEVICES // n_processes, script=MANY):
    assert (ended.status, ended.err) == (0, '')


def same_files(a: pathlib.Path, b: pathlib.Path, *but: str) -> None:
  ours, theirs = resumes.contents(a), resumes.contents(b)
  assert ours.keys() == theirs.keys()
  assert {name for name in ours if ours[name] != theirs[name]} <= set(but)
