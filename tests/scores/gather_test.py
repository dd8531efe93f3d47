"""Reading what harnesses write."""

import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.scores.categories import load_categories
from resmerge_jax.scores.gather import gather
from tests.scores import files

CATEGORIES = load_categories()


def read(*words):
  scores, notes = gather([str(word) for word in words], CATEGORIES)
  return {
    model: {c: round(found.percent, 6) for c, found in row.items()}
    for model, row in scores.items()
  }, notes


def refused(*words) -> str:
  with pytest.raises(InputError) as caught:
    read(*words)
  return str(caught.value)


def test_evalchemy(tmp_path):
  files.results(tmp_path / 'logs', files.EVALCHEMY | {'GPQADiamond': {}})
  scores, notes = read(tmp_path / 'logs')
  assert scores == {
    'Qwen/Qwen3-1.7B-Base': {
      'AIME24': 20, 'AIME25': 10, 'AMC23': 55, 'MATH500': 75,
      'LiveCodeBench': 13.5, 'HumanEval+': 70, 'MBPP+': 60,
    }
  }  # fmt: skip
  assert len(notes) == 1
  assert notes[0].endswith('.json: in no category: GPQADiamond')


def test_lm_evaluation_harness(tmp_path):
  tasks = {
    'aime24': {
      'alias': 'aime24',
      'exact_match,none': 0.3,
      'exact_match_stderr,none': 0,
    },
    'humaneval_plus': {'pass@1,create_test': 0.5},
    'mbpp_plus': {'pass_at_1,none': 0.4},
  }
  file = files.results(tmp_path, tasks)
  assert read(f'ours={file}')[0] == {
    'ours': {'AIME24': 30, 'HumanEval+': 50, 'MBPP+': 40}
  }


@pytest.mark.parametrize(
  ('tasks', 'fields', 'message'),
  [
    (
      {'AIME24': {'error': 'out of memory'}},
      {},
      'AIME24: the evaluation failed: out of',
    ),
    ({'AIME24': None}, {}, 'AIME24: the evaluation failed: None'),
    (
      {'LiveCodeBench': {'accuracy_mean': 0.1, 'examples': []}},
      {},
      'no accuracy_avg among its metrics\nWhat to do: name one of accuracy_mean in',
    ),
    ({'AIME24': {'accuracy_avg': 20.0}}, {}, 'is 20.0, expected a share from 0 to 1'),
    ({'AIME24': {'accuracy_avg': 0.2}}, {'model_name': ''}, 'says no model_name'),
    (
      {'AIME24': {'accuracy_avg': 0.2}},
      {'config': {'limit': 10.0}},
      'limited to 10.0 of the questions',
    ),
  ],
)
def test_bad_results(tmp_path, tasks, fields, message):
  assert message in refused(files.results(tmp_path, tasks, **fields))


def test_bfcl(tmp_path):
  folder = files.bfcl(tmp_path / 'score')
  expected = {'BFCL live': 74.32, 'BFCL non-live': 88.71}
  assert read(folder) == ({'Glyphh Ada 1.1 (HDC+FC)': expected}, [])
  assert read(f'ours={folder}')[0] == {'ours': expected}
  overall = tmp_path / 'data_overall.csv'
  overall.write_text(files.OVERALL)
  assert read(f'ours={overall}')[0] == {'ours': expected}
  assert read(f'ours={overall}', f'ours={folder}')[0] == {'ours': expected}


def test_bfcl_counts_what_was_not_evaluated_as_zero(tmp_path):
  partly = files.LIVE.replace('84.11%', 'N/A').replace('%,74.32%', '%,N/A')
  message = refused(files.bfcl(tmp_path / 'partly', data_live=partly))
  assert 'Live Overall Acc is 74.32%, but parts of it were not evaluated' in message
  assert '  - Python Simple AST\n' in message
  assert '  - Relevance Detection\n' in message
  v3 = files.LIVE.replace('%,74.32%', '%,80.00%')  # the summary has more in it than AST
  assert '  - Relevance Detection\n' in refused(
    files.bfcl(tmp_path / 'v3', data_live=v3)
  )
  live_only = files.OVERALL.replace('80.83%', 'N/A')
  file = tmp_path / 'data_overall.csv'
  file.write_text(live_only)
  assert '  - Non-Live Simple AST\n' in refused(file)


def test_bfcl_not_evaluated_at_all_is_missing(tmp_path):
  head, row = files.NON_LIVE.split('\n')
  nothing = ','.join(row.split(',')[:2] + ['0.00%'] + ['N/A'] * 9)
  texts = {'data_live': files.LIVE, 'data_non_live': f'{head}\n{nothing}'}
  folder = files.bfcl(tmp_path / 'score', **texts)
  assert read(f'ours={folder}')[0] == {'ours': {'BFCL live': 74.32}}


def test_a_name_is_for_one_model(tmp_path):
  second = files.LIVE.split('\n')[1].replace('Glyphh', 'Other')
  folder = files.bfcl(tmp_path / 'two', data_live=f'{files.LIVE}\n{second}')
  assert len(read(folder)[0]) == 2
  assert 'the name ours for 2 models' in refused(f'ours={folder}')
  rows = {('a', 'AIME24'): 20, ('b', 'AIME24'): 30}
  file = files.plain(tmp_path / 'plain.csv', rows)
  assert 'the name ours for several models' in refused(f'ours={file}')


def test_plain(tmp_path):
  rows = {('a', 'AIME24'): ' 20.5 % ', ('a', 'AMC23'): 'N/A', ('b', 'Maths'): '30.00'}
  file = files.plain(tmp_path / 'plain.csv', rows)
  file.write_text('# Table 1 of a paper\n' + file.read_text())
  assert read(file)[0] == {'a': {'AIME24': 20.5}, 'b': {'Maths': 30}}


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('model,AIME24\na,20\n', 'the head is model,AIME24\nWhat to do: write model,'),
    ('model,benchmark,score\na,GSM8K,20\n', 'in no category\n  - GSM8K\n'),
    ('model,benchmark,score\na,AIME24\n', 'rows with other cells than the head\n'),
    ('model,benchmark,score\na,AIME24,twenty\n', "got 'twenty', expected a score in"),
    ('model,benchmark,score\na,AIME24,nan\n', "got 'nan', expected a score in"),
    ('model,benchmark,score\na,AIME24,200\n', "got '200', expected a score in"),
    ('model,benchmark,score\na,AIME24,0.2\na,AMC23,1\n', 'no score above 1'),
    ('Rank,Model\n1,a\n', 'none of the columns Live Overall Acc, '),
    ('', 'the head is \n'),
  ],
)
def test_bad_csv(tmp_path, text, message):
  file = tmp_path / 'scores.csv'
  file.write_text(text)
  assert message in refused(file)


def test_two_scores_for_one_cell(tmp_path):
  for i, share in enumerate((0.2, 0.3)):
    files.results(tmp_path / str(i), {'AIME24': {'accuracy_avg': share}})
  message = refused(tmp_path)
  assert message.startswith(
    'two scores for Qwen/Qwen3-1.7B-Base, AIME24\n  - 20.00 in '
  )
  assert read(f'a={tmp_path / "0"}', f'b={tmp_path / "1"}')[0] == {
    'a': {'AIME24': 20},
    'b': {'AIME24': 30},
  }


def test_bad_paths(tmp_path):
  assert 'no such file or folder' in refused(tmp_path / 'gone')
  assert 'in this folder' in refused(tmp_path)
  assert 'neither .json nor .csv' in refused(__file__)
  assert 'an empty name or path' in refused('=x')
  file = tmp_path / 'results_1.json'
  file.write_text('{"results": []}')
  assert 'no results in it' in refused(file)
  file.write_text('{')
  assert 'cannot be read' in refused(file)
  file = files.results(tmp_path / 'other', {'GPQADiamond': {'accuracy_avg': 0.3}})
  assert refused(file).startswith('no score of any benchmark found\n')
