"""The command that makes a merge again from its recipe."""

import pytest

from resmerge_jax.cli import apply_recipe, merge
from tests import commands, folders, groups


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  weights = [folders.tensors(i) for i in range(3)]
  return groups.write(tmp_path_factory.mktemp('group'), weights[0], weights[1:])


def flags_of(group: groups.Group) -> list[str]:
  experts = ','.join(map(str, group.experts))
  return [f'--base={group.base}', f'--experts={experts}']


def test_merge_and_apply(group, tmp_path):
  flags = flags_of(group)
  saved, again = tmp_path / 'saved', tmp_path / 'again'
  done = commands.run(merge, *flags, f'--output={saved}', '--save_recipe')
  assert (done.status, done.err) == (0, '')
  from_recipe = [*flags, f'--recipe={saved / "recipe"}', f'--output={again}']
  done = commands.run(apply_recipe, *from_recipe)
  assert (done.status, done.err) == (0, '')
  assert f'{again}: 2 experts merged from {saved / "recipe"} in ' in done.out
  assert groups.weight_bytes(again) == groups.weight_bytes(saved)
  done = commands.run(apply_recipe, *from_recipe)
  assert done.status == 1
  assert 'pass --overwrite' in done.err
  done = commands.run(apply_recipe, *from_recipe, '--resume')
  assert (done.status, done.err) == (0, '')
  assert f'{again}: complete, nothing to do; all ' in done.out
  assert done.out.endswith(') are as they were written\n')
  more = ['--overwrite', '--rho=0.9', '--beta_min=0.1', '--beta_max=0.8']
  done = commands.run(apply_recipe, *from_recipe, *more)
  assert (done.status, done.err) == (0, '')
  assert groups.weight_bytes(again) != groups.weight_bytes(saved)


def test_bad_input(group, tmp_path):
  done = commands.run(apply_recipe, '--base=BASE')
  assert done.status == 1
  assert '  - --recipe\n  - --experts\n  - --output\n' in done.err
  place = [f'--output={tmp_path / "out"}', f'--recipe={tmp_path}']
  done = commands.run(apply_recipe, *flags_of(group), *place)
  assert done.status == 1
  assert done.err.startswith(f'error: {tmp_path / "recipe.json"}: cannot be read')
  done = commands.run(apply_recipe, *flags_of(group), *place, 'word')
  assert 'unexpected arguments' in done.err


def test_help():
  done = commands.run(apply_recipe, '--help')
  assert done.status == 0
  for flag in ('--recipe', '--rho', '--beta_min', '--[no]resume', '--coordinator'):
    assert flag in done.out
