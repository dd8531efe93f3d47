"""The table of categories."""

import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.scores.categories import Benchmark, load_categories


def test_the_papers():
  columns = {c: [b.name for b in row] for c, row in load_categories().items()}
  assert columns == {
    'Maths': ['AIME24', 'AIME25', 'AMC23', 'MATH500'],
    'Coding': ['LiveCodeBench', 'HumanEval+', 'MBPP+'],
    'Tool use': ['BFCL live', 'BFCL non-live'],
    'Memory': ['HotpotQA 7K', 'HotpotQA 14K', 'SQuAD 32K'],
  }
  assert all(b.dataset for row in load_categories().values() for b in row)


def test_a_file(tmp_path):
  path = tmp_path / 'mine.toml'
  path.write_text("[Reasoning.GPQA]\nharness = ['GPQADiamond:accuracy_avg']\n")
  assert load_categories(path) == {
    'Reasoning': (Benchmark('GPQA', (('GPQADiamond', 'accuracy_avg'),)),)
  }


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'no category in it'),
    ('[', 'cannot be read'),
    ('Maths = 1', 'Maths: not a category with benchmarks in it'),
    ('[Maths]\nAIME24 = 1', 'Maths.AIME24: not a table'),
    ('[Maths.AIME24]\nmetric = 1', 'Maths.AIME24: unknown metric'),
    ("[Maths.AIME24]\nbfcl = 'x'", 'Maths.AIME24: bfcl is no list of texts'),
    ("[Maths.AIME24]\nharness = ['x']", "harness 'x' has no metric"),
    ('[A.x]\n[B.x]', "'x' names two columns"),
    ('[A.Overall]', "'Overall' names two columns"),
  ],
)
def test_bad_files(tmp_path, text, message):
  path = tmp_path / 'bad.toml'
  path.write_text(text)
  with pytest.raises(InputError) as caught:
    load_categories(path)
  assert message in str(caught.value)
