"""Bad input through the merge command: status 1, one message that names the offender,
before a weight is read, and no output."""

import json
import os
import pathlib
import shutil
import types

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resmerge_jax.checkpoint.reader import CheckpointReader
from resmerge_jax.cli import merge, plan
from tests import commands, folders, groups
from tests.cli.merge_test import assert_refused, flags_of

UP = 'model.layers.0.mlp.up_proj.weight'
EMBEDDING = 'model.embed_tokens.weight'
NORM = 'model.norm.weight'
WEIGHTS = 'model.safetensors'


def make_group(path: pathlib.Path) -> groups.Group:
  experts = [folders.tensors(1), folders.tensors(2)]
  return groups.write(path, folders.tensors(), experts)


def changed(edit):
  """A way to break a folder: its tensors, edited by `edit`, saved anew."""

  def damage(folder):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, {'format': 'pt'})

  return damage


def header(edit):
  """A way to break a folder: the header of its weights, edited by `edit`."""

  def damage(folder):
    raw = (folder / WEIGHTS).read_bytes()
    n = int.from_bytes(raw[:8], 'little')
    entries = json.loads(raw[8 : 8 + n])
    text = edit(entries)
    folders.write_raw(folder / WEIGHTS, entries if text is None else text, raw[8 + n :])

  return damage


def config(**fields):
  def damage(folder):
    content = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**content, **fields}))

  return damage


def index(weight_map):
  """A way to break a folder: one shard, and an index that says something else."""

  def damage(folder):
    true_map = dict.fromkeys(load_file(folder / WEIGHTS), WEIGHTS)
    folders.write_index(folder, {**true_map, **weight_map})

  return damage


def only(*names: str):
  """A way to break a folder: nothing but empty files of these names."""

  def damage(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    for name in names:
      (folder / name).write_text('{}')

  return damage


def cut(folder):
  os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 10)


def to_adapter(folder):
  (folder / WEIGHTS).rename(folder / 'adapter_model.safetensors')
  (folder / 'adapter_config.json').write_text('{"peft_type": "LOHA"}')


def bump(entries, name, by):
  begin, end = entries[name]['data_offsets']
  entries[name]['data_offsets'] = [begin + by, end + by]


def twice(entries):
  entries.pop('__metadata__')
  body = json.dumps(entries)[1:-1]
  return f'{{{body}, {body}}}'.encode()


def enlarged(tensors, name, rows):
  tensors[name] = np.zeros((rows, *tensors[name].shape[1:]), ml_dtypes.bfloat16)


# What is wrong -> (how a folder gets so, what the message says beside the folder).
FOLDERS = {
  'missing': (shutil.rmtree, ['no such folder']),
  'a file': (
    lambda folder: [shutil.rmtree(folder), folder.touch()],
    ['a file, not a folder'],
  ),
  'no checkpoint': (only('notes.txt'), ['not a checkpoint folder', 'notes.txt']),
  'no config': (
    lambda folder: (folder / 'config.json').unlink(),
    ['config.json'],
  ),
  'config not JSON': (
    lambda folder: (folder / 'config.json').write_text('{'),
    ['config.json is not JSON'],
  ),
  'pickles': (
    only('config.json', 'pytorch_model.bin'),
    ['weights only as pickles', 'pytorch_model.bin', 'executes code', 'convert them'],
  ),
  'truncated': (cut, [f'{WEIGHTS}: truncated: ', ' bytes declared, ']),
  'header too large': (
    lambda folder: (folder / WEIGHTS).write_bytes(b'\xff' * 7 + b'\x00' + b'{}'),
    [f'{WEIGHTS}: header too large: ', 'bytes declared'],
  ),
  'header not JSON': (header(lambda _: b'{"a": '), [f'{WEIGHTS}: the header is not J']),
  'overlap': (
    header(lambda entries: bump(entries, UP, -8)),
    [f'{WEIGHTS}: tensor offsets overlap', UP],
  ),
  'out of range': (
    header(lambda entries: bump(entries, UP, 10**6)),
    [f'{WEIGHTS}: tensor offsets overlap, leave holes or lie outside', UP],
  ),
  'duplicate names': (
    header(twice),
    [f'{WEIGHTS}: names that occur more than once in the header', UP],
  ),
  'index: missing file': (
    index({UP: 'model-2.safetensors'}),
    ['index.json names files that are missing', 'model-2.safetensors (1 tensor'],
  ),
  'index: file outside': (
    index({UP: '../e1/model.safetensors'}),
    ['index.json names files outside the folder', "'../e1/model.safetensors'"],
  ),
  'index: no such tensor': (
    index({'model.ghost.weight': WEIGHTS}),
    ['index.json and the files do not agree', 'model.ghost.weight: the index says'],
  ),
  'quantised by config': (
    config(quantization_config={'quant_method': 'gptq'}),
    ['quantised: config.json has quantization_config (gptq)', 'give the unquantised'],
  ),
  'quantised tensors': (
    changed(lambda t: t.update({'model.layers.0.mlp.up_proj.qweight': t[NORM]})),
    ['quantised: 1 tensors', 'model.layers.0.mlp.up_proj.qweight: BF16 [4]'],
  ),
  'adapter of another kind': (
    to_adapter, ["an adapter of peft_type 'LOHA'", 'merge_and_unload()']
  ),
}  # fmt: skip
# The same for what only a comparison with the base shows; of expert 'e1'.
DISAGREEMENTS = {
  'shape': (
    changed(lambda t: t.update({UP: t[UP].T.copy()})),
    [f"expert 'e1': {UP} in {WEIGHTS} is BF16 [4, 8], the base has BF16 [8, 4]"],
  ),
  'dtype kind': (
    changed(lambda t: t.update({NORM: np.zeros(4, np.int32)})),
    [f"expert 'e1': {NORM} in {WEIGHTS} is I32 [4], the base has BF16 [4]"],
  ),
  'names': (
    changed(lambda t: t.update({'extra.weight': t.pop(NORM)})),
    [
      f"expert 'e1': {NORM} is missing, the base has BF16 [4]",
      "expert 'e1': extra.weight: BF16 [4], the base has no such tensor",
    ],
  ),
  'vocabulary': (
    changed(lambda t: enlarged(t, EMBEDDING, 9)),
    [f"expert 'e1': {EMBEDDING} in {WEIGHTS} is BF16 [9, 4]", '--vocab=base_rows'],
  ),
}


@pytest.fixture
def _no_weights(monkeypatch):
  def read(*_):
    raise AssertionError('weights are read')

  monkeypatch.setattr(CheckpointReader, 'read_into', read)


def fails(
  tmp_path: pathlib.Path,
  group: groups.Group,
  texts: list[str],
  *args: str,
  output: pathlib.Path | None = None,
  tools: tuple[types.ModuleType, ...] = (merge, plan),
) -> None:
  """The merge and its dry run both refuse, and leave the disk as it was."""
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  for tool in tools:
    done = commands.run(
      tool,
      *flags_of(group, output or tmp_path / 'out'),
      '--method=task_arithmetic',
      *args,
    )
    assert_refused(done, *texts)
  found = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  assert found == before


@pytest.mark.usefixtures('_no_weights')
@pytest.mark.parametrize('who', ['base', 'e1'])
@pytest.mark.parametrize('wrong', FOLDERS)
def test_broken_folders(tmp_path, wrong, who):
  damage, texts = FOLDERS[wrong]
  group = make_group(tmp_path)
  damage(tmp_path / who)
  role = 'base' if who == 'base' else "expert 'e1'"
  fails(tmp_path, group, [f'{role} {tmp_path / who}', *texts])


@pytest.mark.usefixtures('_no_weights')
@pytest.mark.parametrize('wrong', DISAGREEMENTS)
def test_experts_that_do_not_match_the_base(tmp_path, wrong):
  damage, texts = DISAGREEMENTS[wrong]
  group = make_group(tmp_path)
  damage(tmp_path / 'e1')
  fails(tmp_path, group, texts)


@pytest.mark.usefixtures('_no_weights')
def test_all_offenders_of_a_kind_come_at_once(tmp_path):
  group = make_group(tmp_path)
  for who in ('e0', 'e1'):
    changed(lambda t: t.update({UP: t[UP].T.copy(), NORM: t[NORM][:2]}))(tmp_path / who)
  fails(
    tmp_path,
    group,
    [
      '2 of 2 experts do not match base',
      *(f'expert {e!r}: {name} in' for e in ('e0', 'e1') for name in (UP, NORM)),
    ],
  )


@pytest.mark.usefixtures('_no_weights')
def test_unknown_config_fields(tmp_path):
  group = make_group(tmp_path)
  args = ['--config.method.scael=2', '--config.sead=1']
  fails(
    tmp_path,
    group,
    ["no field 'scael' (did you mean 'scale'?)", "'sead' (did you mean 'seed'?)"],
    *args,
  )


@pytest.mark.usefixtures('_no_weights')
def test_outputs_that_cannot_be(tmp_path):
  group = make_group(tmp_path / 'in')
  full = tmp_path / 'full'
  full.mkdir()
  (full / 'notes.txt').touch()
  for output, texts in {
    full: [f'output {full} is not empty', 'pass --overwrite'],
    full / 'notes.txt': [f'output {full}/notes.txt is a file'],
    full / 'notes.txt' / 'out': [f'{full}/notes.txt is a file'],
    group.base: [f'{group.base} is the output itself'],
    group.experts[1] / 'out': [f'the output lies inside {group.experts[1]}'],
    tmp_path / 'in': [f'{group.base} lies inside the output'],
  }.items():
    fails(tmp_path, group, texts, output=output)


@pytest.mark.usefixtures('_no_weights')
def test_no_space_left(tmp_path, monkeypatch):
  group = make_group(tmp_path)
  usage = types.SimpleNamespace(total=10**9, used=10**9, free=100)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  texts = [f'not enough space on the disk of {tmp_path}', '100 B free', 'free some']
  fails(tmp_path, group, texts)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('who', ['base', 'e1'])
def test_numbers_that_are_not_finite(tmp_path, bad, who):
  group = make_group(tmp_path)

  def edit(tensors):
    tensors[UP][3, 2] = bad
    tensors[NORM][1] = bad

  changed(edit)(tmp_path / who)
  role = 'base' if who == 'base' else 'expert'
  texts = ['NaN or Inf in the weights', f'{role} {who!r}: ', 'nothing was written']
  fails(tmp_path, group, texts, tools=(merge,))


def test_the_undamaged_group_merges(tmp_path):
  """So that the failures above are those of the damage."""
  group = make_group(tmp_path)
  index({})(group.base)
  args = [*flags_of(group, tmp_path / 'out'), '--method=task_arithmetic']
  assert commands.run(plan, *args).status == 0
  done = commands.run(merge, *args)
  assert (done.status, done.err) == (0, '')
