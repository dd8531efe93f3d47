"""The command that makes tables of scores."""

from html.parser import HTMLParser

import pytest

from resmerge_jax.cli import scores
from tests import commands
from tests.scores import files

CATEGORIES = '[A.a1]\n[A.a2]\n[B.b1]\n'
GIVEN = {
  ('base', 'a1'): 10, ('base', 'a2'): 20, ('base', 'b1'): 30,
  ('x|<y>', 'a1'): 12.36, ('x|<y>', 'a2'): 20, ('x|<y>', 'b1'): 40,
  ('part', 'a1'): 11,
}  # fmt: skip
TABLE = """\
| Model | a1 | a2 | A average | b1 | B average | Overall | vs base | Rank |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| base | 10.00 | **20.00** | 15.00 | 30.00 | 30.00 | 22.50 | +0.00 | 2 |
| x\\|<y> | **12.36** | **20.00** | **16.18** | **40.00** | **40.00** | **28.09** | +5.59 | 1 |
| part | 11.00 | — | — | — | — | — | — | — |

* part: no score of a2, b1; no average over them is formed
"""


@pytest.fixture
def words(tmp_path):
  (tmp_path / 'mine.toml').write_text(CATEGORIES)
  plain = files.plain(tmp_path / 'plain.csv', GIVEN)
  return [plain, f'--categories={tmp_path / "mine.toml"}', '--baseline=base']


class Cells(HTMLParser):
  """Rows of cells with their text."""

  def __init__(self, text):
    super().__init__()
    self.rows, self.spans = [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')
      self.spans += [int(value) for name, value in attrs if name == 'colspan']

  def handle_data(self, data):
    if self.rows and self.rows[-1]:
      self.rows[-1][-1] += data.strip()


def test_table(words, tmp_path):
  outputs = [tmp_path / f'table.{kind}' for kind in ('md', 'html', 'csv')]
  done = commands.run(scores, *words, f'--output={",".join(map(str, outputs))}')
  assert (done.status, done.out, done.err) == (0, TABLE, '')
  markdown, page, numbers = (path.read_text('utf-8') for path in outputs)
  assert markdown == TABLE
  assert numbers.splitlines() == [
    'Model,a1,a2,A average,b1,B average,Overall,vs base,Rank',
    'base,10.0000,20.0000,15.0000,30.0000,30.0000,22.5000,0.0000,2',
    'x|<y>,12.3600,20.0000,16.1800,40.0000,40.0000,28.0900,5.5900,1',
    'part,11.0000,,,,,,,',
  ]
  cells = Cells(page)
  assert cells.rows[1:4] == [
    ['Model', 'a1', 'a2', 'Average', 'b1', 'Average', 'Overall', 'vs base', 'Rank'],
    ['base', '10.00', '20.00', '15.00', '30.00', '30.00', '22.50', '+0.00', '2'],
    ['x|<y>', '12.36', '20.00', '16.18', '40.00', '40.00', '28.09', '+5.59', '1'],
  ]
  assert sum(cells.spans) == len(cells.rows[1]) - 1
  assert 'part: no score of a2, b1' in page
  assert '://' not in page  # nothing is fetched


def test_what_is_in_no_category_is_said(tmp_path):
  file = files.results(tmp_path, files.EVALCHEMY | {'GPQADiamond': {}})
  done = commands.run(scores, f'ours={file}')
  assert (done.status, done.err) == (0, f'note: {file}: in no category: GPQADiamond\n')
  assert '| ours | 20.00 | 10.00 | 55.00 | 75.00 | 40.00 | 13.50 |' in done.out


@pytest.mark.parametrize(
  ('more', 'message'),
  [
    (['--baseline=gone'], 'error: --baseline=gone: no such model\n'),
    (
      ['--output=table.txt'],
      'error: --output: no table is written so\n  - table.txt\n',
    ),
    (['--output=/gone/t.md'], 'error: --output=/gone/t.md: cannot be written: '),
    (['gone.csv'], 'error: scores gone.csv: no such file or folder\n'),
  ],
)
def test_errors(words, more, message):
  done = commands.run(scores, *words, *more)
  assert (done.status, done.out) == (1, '')
  assert done.err.startswith(message)


def test_nothing_given():
  assert commands.run(scores).err.startswith('error: no scores given\n')
