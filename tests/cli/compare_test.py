"""The command that compares two checkpoints."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from resmerge_jax.cli import compare
from resmerge_jax.errors import InputError
from tests import folders

ROOT = pathlib.Path(__file__).parents[2]
UP = 'model.layers.0.mlp.up_proj.weight'


@pytest.fixture
def run(capsys):
  """Calls the command in process; returns its status and what it printed."""
  compare._define_flags()

  def call(*args):
    status = compare.main(flags.FLAGS(['compare', *map(str, args)]))
    return status, capsys.readouterr().out

  yield call
  flags.FLAGS.unparse_flags()
  for name in ('json', 'rows'):
    delattr(flags.FLAGS, name)


@pytest.fixture
def pair(tmp_path):
  weights = {n: a.astype(np.float32) for n, a in folders.tensors().items()}
  weights[UP][0, :2] += [1, 2]
  weights['model.norm.weight'][0] = np.nan
  return (
    folders.write_folder(tmp_path / 'a'),
    folders.write_folder(tmp_path / 'b', weights, n_shards=2),
  )


def test_equal_whatever_the_shards(run, tmp_path):
  a = folders.write_folder(tmp_path / 'a')
  b = folders.write_folder(tmp_path / 'b', n_shards=3)
  assert run(a, b) == (
    0,
    '8 tensors: 8 equal (8 byte for byte), 0 with other values, 0 not comparable\n',
  )


def test_table(run, pair):
  status, out = run(*pair)
  head, nan, up, summary = out.splitlines()
  assert status == 1
  assert head.split() == ['relative', 'max', 'bf16', 'differ', 'nan', 'tensor']
  assert nan.split() == ['0', '0', '0', '25.00%', '1', 'model.norm.weight']
  exact = folders.tensors()[UP].astype(np.float64)
  relative, largest, _, share, n_nan, name = up.split()
  assert relative == f'{5**0.5 / np.linalg.norm(exact):.3g}'
  assert (largest, share, n_nan, name) == ('2', '6.25%', '0', UP)
  assert summary == (
    '8 tensors: 6 equal (0 byte for byte), 2 with other values, 0 not comparable'
  )
  assert '... and 1 more (--rows)\n' in run(*pair, '--rows=1')[1]


def test_names_shapes_and_kinds(run, tmp_path):
  a = folders.tensors()
  b = {**a, UP: np.zeros((2, 4), np.float32), 'new': np.zeros(1, np.float32)}
  del b['model.norm.weight']
  paths = [
    folders.write_folder(tmp_path / name, weights)
    for name, weights in (('a', a), ('b', b))
  ]
  status, out = run(*paths)
  assert status == 1
  assert f'{UP}: BF16 [8, 4] in A, F32 [2, 4] in B\n' in out
  assert 'model.norm.weight: only in A, BF16 [4]\n' in out
  assert 'new: only in B, F32 [1]\n' in out
  assert '9 tensors: 6 equal (6 byte for byte), 0 with other values, 3 not' in out


def test_json(run, pair):
  status, out = run(*pair, '--json')
  found = json.loads(out)
  tensors = {entry['name']: entry for entry in found['tensors']}
  assert (status, found['equal'], found['same_bytes']) == (1, False, False)
  assert len(tensors) == 8
  assert tensors[UP]['a'] == {'dtype': 'BF16', 'shape': [8, 4]}
  assert tensors[UP]['b'] == {'dtype': 'F32', 'shape': [8, 4]}
  assert tensors[UP]['max_abs'] == 2
  assert tensors[UP]['share_differ'] == 2 / 32
  assert tensors['model.norm.weight']['nan_on_one_side'] == 1
  equal = tensors['model.embed_tokens.weight']
  assert (equal['equal'], equal['relative'], equal['same_bytes']) == (True, 0, False)


def test_infinite_numbers_are_legal_json(run, tmp_path):
  a = {'w': np.float32([0, 0])}
  b = {'w': np.float32([0, 1])}
  paths = [folders.write_folder(tmp_path / name, w) for name, w in (('a', a), ('b', b))]
  entry = json.loads(run(*paths, '--json')[1])['tensors'][0]
  assert (entry['relative'], entry['max_abs']) == ('inf', 1)


def test_one_folder_given():
  with pytest.raises(InputError, match='1 folders given, two are wanted'):
    compare.main(['compare', 'a'])


def test_trouble_from_a_clone(tmp_path):
  command = [sys.executable, '-m', 'tools.compare', tmp_path / 'a', tmp_path / 'b']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith(f'error: A {tmp_path}/a: no such folder\n')


def test_help_teaches_and_succeeds():
  command = [sys.executable, '-m', 'tools.compare', '--help']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr) == (0, '')
  assert 'Exit status, as of diff' in done.stdout
  assert '--rows: rows of the table' in done.stdout
