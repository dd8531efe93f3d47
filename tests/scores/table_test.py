"""Averages, differences, ranks, and averages that others printed."""

import pathlib

import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.scores.categories import Benchmark, load_categories
from resmerge_jax.scores.gather import gather
from resmerge_jax.scores.render import notes_on
from resmerge_jax.scores.table import check_printed, make_rows, rounded
from tests.scores import files

TABLES = pathlib.Path(__file__).with_name('tables')
SMALL = {'A': (Benchmark('a1'), Benchmark('a2')), 'B': (Benchmark('b1'),)}


def rows_of(tmp_path, rows, categories=SMALL, baseline=None):
  scores, _ = gather([str(files.plain(tmp_path / 'plain.csv', rows))], categories)
  return make_rows(scores, categories, baseline), scores


def full(**models):
  return {
    (model, column): number
    for model, numbers in models.items()
    for column, number in zip(('a1', 'a2', 'b1'), numbers, strict=True)
  }


def test_overall_is_the_mean_of_the_categories(tmp_path):
  given = full(ours=(10, 20, 60), base=(10, 10, 30))
  (ours, base), _ = rows_of(tmp_path, given, baseline='base')
  assert (ours.percent['A'], ours.percent['B']) == (15, 60)
  assert ours.percent['Overall'] == 37.5  # of three benchmarks it would be 30
  assert (ours.difference, base.difference) == (17.5, 0)


def test_equal_numbers_share_a_rank(tmp_path):
  # c is above b by less than what is printed.
  models = {'a': (9, 9, 9), 'b': (7, 7, 7), 'c': (7, 7, 7.001), 'd': (5, 5, 5)}
  rows, _ = rows_of(tmp_path, full(**models))
  assert [row.rank for row in rows] == [1, 2, 2, 4]


def test_halves_are_rounded_as_by_hand():
  assert (74.32 + 88.71) / 2 < 81.515  # in binary
  assert str(rounded((74.32 + 88.71) / 2)) == '81.52'
  assert [f'{rounded(x):+}' for x in (-1.005, -0.001, 0.0)] == [
    '-1.01',
    '+0.00',
    '+0.00',
  ]


def test_no_average_over_a_missing_score(tmp_path):
  given = full(ours=(10, 20, 60), part=(10, 'N/A', 30))
  (ours, part), _ = rows_of(tmp_path, given, baseline='ours')
  assert part.percent == {
    'a1': 10, 'a2': None, 'A': None, 'b1': 30, 'B': 30, 'Overall': None,
  }  # fmt: skip
  assert (part.difference, part.rank, ours.rank) == (None, None, 1)
  assert notes_on([ours, part], SMALL, []) == [
    'part: no score of a2; no average over them is formed'
  ]
  with pytest.raises(InputError, match='has no overall average; missing\n  - a2\n'):
    rows_of(tmp_path, given, baseline='part')
  with pytest.raises(
    InputError, match='no such model\nWhat to do: use one of ours, pa'
  ):
    rows_of(tmp_path, given, baseline='gone')


def test_printed_averages(tmp_path):
  given = full(ours=(10, 20, 60.01), part=(1, 'N/A', 3))
  given |= {
    ('ours', 'A'): '15.00',
    ('ours', 'B'): '60.02',
    ('ours', 'Overall'): '40.00',
  }
  given |= {('part', 'A'): '2.00'}
  rows, scores = rows_of(tmp_path, given)
  printed = check_printed(scores, rows, SMALL)
  assert [p.verdict for p in printed] == ['same', 'rounding', 'differs', 'unknown']
  assert notes_on(rows, SMALL, printed)[1:] == [
    'printed averages: 1 of 4 follow from the benchmarks',
    'ours, B: printed 60.02, computed 60.010 (rounding of the benchmarks may explain it)',
    'ours, Overall: printed 40.00, computed 37.505 (does not follow)',
    'part, A: printed 2.00, computed — (benchmarks are missing)',
  ]


@pytest.mark.parametrize(
  ('table', 'names', 'count'),
  [
    ('gdpo_table_1', ['Live', 'Multi turn', 'Non-live'], 3),
    ('open_llm_merges', ['IFEval', 'BBH', 'MATH Lvl 5', 'GPQA', 'MuSR', 'MMLU-PRO'], 4),
  ],
)
def test_published_averages_follow_from_their_rows(table, names, count):
  # Each benchmark is a category of its own, so that Overall is the mean of all.
  categories = {f'{name} alone': (Benchmark(name),) for name in names}
  scores, _ = gather([str(TABLES / f'{table}.csv')], categories)
  printed = check_printed(scores, make_rows(scores, categories), categories)
  assert [p.verdict for p in printed] == ['same'] * count


def test_columns_of_the_paper(tmp_path):
  files.results(tmp_path / 'logs', files.EVALCHEMY)
  files.bfcl(tmp_path / 'score')
  rows = {('ours', column): number for column, number in files.MEMORY.items()}
  memory = files.plain(tmp_path / 'memory.csv', rows)
  words = [f'ours={tmp_path / "logs"}', f'ours={tmp_path / "score"}', str(memory)]
  categories = load_categories()
  scores, _ = gather(words, categories)
  (row,) = make_rows(scores, categories)
  averages = {name: round(row.percent[name], 6) for name in (*categories, 'Overall')}
  maths, coding, tools, memory = 40, 143.5 / 3, 81.515, 70
  assert averages == {
    'Maths': maths,
    'Coding': round(coding, 6),
    'Tool use': tools,
    'Memory': memory,
    'Overall': round((maths + coding + tools + memory) / 4, 6),
  }
