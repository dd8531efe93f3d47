"""The list of methods: every entry of the tables, and what it says follows from them."""

import dataclasses
from typing import Literal

import pytest

from resmerge_jax.cli import methods
from resmerge_jax.methods.base import Scan
from resmerge_jax.methods.table import METHODS, POSTS
from tests import commands
from tests.cli.merge_test import assert_refused

ENTRIES = {**METHODS, **POSTS}


def test_all_methods_and_parameters():
  done = commands.run(methods)
  assert (done.status, done.err) == (0, '')
  blocks = {block.split('  ')[0]: block for block in done.out.rstrip().split('\n\n')}
  headings = [name for name in blocks if ' ' in name]
  assert [name for name in blocks if name not in headings] == list(ENTRIES)
  for name, entry in ENTRIES.items():
    first, *lines = blocks[name].splitlines()
    assert first == f'{name}  {entry.source}'
    if name in METHODS:
      assert lines.pop(0).startswith('  reads the weights ')
    elif entry.whole_matrix:
      assert lines.pop(0) == '  hidden matrices, whole'
    fields = [field.name for field in dataclasses.fields(entry.params)]
    assert [line.split()[0] for line in lines] == fields


@pytest.mark.parametrize('name', ENTRIES)
def test_every_parameter_is_explained(name):
  params = ENTRIES[name].params
  for field in dataclasses.fields(params):
    assert methods._meaning(params, field.name), f'{name}.{field.name}'


def test_one_in_full():
  done = commands.run(methods, 'task_arithmetic', 'resmerge')
  assert (done.status, done.err) == (0, '')
  lines = done.out.splitlines()
  assert lines[0] == 'task_arithmetic  Ilharco et al. 2023, arXiv 2212.04089'
  for line in (
    'Task arithmetic: W_0 + lambda sum_i D_i (Ilharco et al., arXiv 2212.04089, Sec. 2).',
    '  reduce = mean  (mean | sum)',
    '  scale = 1.0',
    '  reads the weights once; hidden matrices, by blocks of rows; takes --weights',
    '  family_scale = unset',
    'branches in the records: consensus, mean, zero',
  ):
    assert line in lines, line


def test_choices_that_change_the_cost():
  """Of a method made up for it: `mode` b scans twice and takes every tensor."""

  @dataclasses.dataclass(frozen=True)
  class Params:
    mode: Literal['a', 'b'] = 'a'
    size: float = float('nan')

  scan = Scan(measure=None, finish=None)  # type: ignore[arg-type]
  method = dataclasses.replace(
    METHODS['task_arithmetic'],
    params=Params,
    scans=lambda params: (scan, scan) if params.mode == 'b' else (),
    gets=lambda params: 'all' if params.mode == 'b' else 'matrices',
    float64=True,
    whole_matrix=lambda params: True,  # noqa: ARG005
  )
  lines = methods.in_full(method)
  assert '  mode = a  (a | b)' in lines
  assert '  size = required' in lines
  cost = 'reads the weights once; matrices, whole; float64, on the CPU; takes --weights'
  at = lines.index(f'  {cost}')
  assert lines[at + 1] == (
    '  mode=b: reads the weights 3 times; every floating tensor, whole'
  )


def test_unknown_names():
  done = commands.run(methods, 'resmrge', 'task_arithmetic')
  assert_refused(done, "unknown methods\n  - 'resmrge' (did you mean 'resmerge'?)\n")


def test_help_teaches_by_examples():
  done = commands.run(methods, '--help')
  assert (done.status, done.err) == (0, '')
  assert 'python -m tools.methods resmerge task_arithmetic' in done.out
  assert 'whole matrices' in done.out
