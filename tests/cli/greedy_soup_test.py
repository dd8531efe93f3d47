"""The greedy soup: who joins, what a scoring command may do, and that trials go."""

import contextlib
import pathlib
import sys

import pytest

from resmerge_jax.cli import greedy_soup
from tests import commands, folders, groups
from tests.cli.merge_test import assert_refused, flags_of

# Minus the distance of the embedding's first entry from 1.
SCORE = """
import pathlib, sys
import ml_dtypes
from safetensors.numpy import load_file
(file,) = pathlib.Path(sys.argv[1]).glob('*.safetensors')
print('some words')
print(-abs(float(load_file(file)['model.embed_tokens.weight'][0, 0]) - 1))
"""


@pytest.fixture
def group(tmp_path) -> groups.Group:
  """Experts e0 to e3 whose first entry is 4, 0.5, 1.25, 0."""
  experts = []
  for value in (4, 0.5, 1.25, 0):
    weights = folders.tensors()
    weights['model.embed_tokens.weight'][0, 0] = value
    experts.append(weights)
  (tmp_path / 'score.py').write_text(SCORE)
  return groups.write(tmp_path / 'group', folders.tensors(), experts)


def score(tmp_path: pathlib.Path) -> str:
  return f'--score={sys.executable} {tmp_path / "score.py"} {{model}}'


def test_the_average_of_those_that_help(group, tmp_path):
  """1.25 alone is off by 0.25; with 0.5 by 0.125; then 0 and 4 make it worse."""
  output = tmp_path / 'made' / 'soup'
  done = commands.run(greedy_soup, *flags_of(group, output), score(tmp_path))
  assert (done.status, done.err) == (0, '')
  e0, e1, e2, e3 = map(str, group.experts)
  assert done.out.splitlines() == [
    f'-0.25  {e2} alone',
    f'-0.5  {e1} alone',
    f'-1  {e3} alone',
    f'-3  {e0} alone',
    f'-0.125  with {e1}: joins',
    f'-0.417969  with {e3}: left out',  # 1.75 / 3 in bfloat16
    f'-0.914062  with {e0}: left out',  # 5.75 / 3
    f'{output}: average of 2 of 4 experts, score -0.125: {e2}, {e1}',
  ]
  assert groups.load(output)['model.embed_tokens.weight'][0, 0] == 0.875
  assert [path.name for path in output.parent.iterdir()] == ['soup']


def test_equal_scores_do_not_join():
  asked = []

  @contextlib.contextmanager
  def average(soup):
    asked.append(soup)
    yield pathlib.Path('+'.join(soup))

  chosen, best = greedy_soup.greedy_soup(['a', 'b', 'c'], lambda path: 1.0, average)  # noqa: ARG005
  assert (chosen, best) == (['a'], 1.0)
  assert asked == [['a', 'b'], ['a', 'c']]


def test_commands_that_do_not_score(group, tmp_path):
  output = tmp_path / 'made' / 'soup'
  python = sys.executable
  for command, *texts in (
    ('echo 1', "--score: got 'echo 1', expected a command with {model} in it"),
    ('gone {model}', '--score: [Errno 2] No such file'),
    ('echo {model}', 'ended with 0, last line', 'must print a number'),
    ('echo nan {model}', 'must print a number'),
    (
      f"{python} -c 'print(1); import sys; sys.exit(sys.argv[1])' {{model}}",
      'ended with 1',
      f'  - {group.experts[0]}',
    ),
  ):
    flags = flags_of(group, output)
    done = commands.run(greedy_soup, *flags, f'--score={command}')
    assert_refused(done, *texts)
    assert not output.exists()
    assert not output.parent.exists() or not any(output.parent.iterdir())


def test_the_output_is_judged_before_anything_is_scored(group, tmp_path):
  flags = flags_of(group, group.base)
  done = commands.run(greedy_soup, *flags, '--score=false {model}')
  assert_refused(done, 'output')
  done = commands.run(greedy_soup, score(tmp_path))
  assert_refused(done, 'missing flags\n  - --base\n  - --experts\n  - --output\n')
