"""Merges by several processes have the bytes of one process."""

import json

import pytest
from orbax.checkpoint import v1 as checkpoint

from tests import adapters, groups, resumes, several
from tests.processes.runs import merge_by, merge_here, same_files


@pytest.mark.parametrize('name', ['automatic', 'layers'])
def test_two_processes_write_the_bytes_of_one(alone, by_two, name):
  assert groups.weight_bytes(by_two / name) == groups.weight_bytes(alone / name)
  # Sums over rows, where these were cut, are added in another order.
  sums = ('records.jsonl', 'manifest.json') if name == 'layers' else ()
  same_files(by_two / name, alone / name, *sums)
  exact = {
    r['name']: any(r.get('float64_head', [])) for r in groups.records(by_two / name)
  }
  assert [n for n, again in exact.items() if again] == [several.CLOSE]


def test_adapters_by_two_processes(base, group, tmp_path):
  """Factors, by layers and by rows; an embedding in blocks of rows."""
  modules = ('mlp.up_proj', 'self_attn.k_proj')
  names = [f'model.layers.{i}.{m}' for i in range(several.LAYERS) for m in modules]
  experts = tuple(
    adapters.write(
      tmp_path / f'e{seed}',
      {k: x for n in names for k, x in adapters.factors(base, n, 5, seed).items()},
      r=5,
    )
    for seed in range(2)
  )
  of_adapters, work = group._replace(experts=experts), tmp_path / 'two'
  merge_by(2, work, of_adapters, 'layers', 'rows')
  one = merge_here(tmp_path / 'one', of_adapters, 'layers').output
  assert groups.weight_bytes(work / 'layers') == groups.weight_bytes(one)
  one = merge_here(tmp_path / 'one', of_adapters, 'rows', 1, mesh=None).output
  several.assert_agree(groups.load(work / 'rows'), groups.load(one), base)


@pytest.mark.parametrize('name', ['counts', 'trims'])
def test_scans_of_two_processes_find_what_one_finds(alone, by_two, name):
  assert groups.weight_bytes(by_two / name) == groups.weight_bytes(alone / name)
  ours, theirs = (
    json.loads((work / name / 'manifest.json').read_text())['scans']
    for work in (by_two, alone)
  )
  assert ours == theirs
  assert ours


def test_four_processes_write_the_bytes_of_one(alone, group, tmp_path):
  merge_by(4, tmp_path, group, 'automatic')
  same_files(tmp_path / 'automatic', alone / 'automatic')


@pytest.mark.parametrize(
  ('name', 'reference'), [('rows', 'rows'), ('both', 'automatic')]
)
def test_rows_on_several_processes_agree_with_one_device(
  alone, by_two, base, name, reference
):
  want = groups.load(alone / 'one_device' / reference)
  several.assert_agree(groups.load(by_two / name), want, base)
  assert [r['name'] for r in groups.records(by_two / name)] == list(base)


def test_two_runs_are_equal(by_two):
  ours, again = (resumes.contents(by_two / name) for name in ('both', 'both_again'))
  for name in ours.keys() - {'manifest.json', 'README.md'}:  # these name the output
    assert ours[name] == again[name], name


def test_whole_files_have_the_same_bytes(alone, by_two):
  ours, theirs = by_two / 'whole', alone / 'automatic'
  assert len(groups.weight_bytes(ours)) > len(groups.weight_bytes(theirs))
  groups.assert_same_bits(groups.load(ours), groups.load(theirs))
  assert groups.records(ours) == groups.records(theirs)


@pytest.mark.parametrize('name', ['orbax', 'formats'])
def test_one_process_restores_what_two_wrote_for_orbax(alone, by_two, name):
  folder = by_two / name / 'orbax' if name == 'formats' else by_two / name
  want = groups.load(alone / 'means')
  groups.assert_same_bits(checkpoint.load(folder), want)
  if name == 'formats':
    groups.assert_same_bits(groups.load(by_two / name), want)
