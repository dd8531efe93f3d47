"""Files as the harnesses write them, cut to what is read."""

import json
import pathlib

# Columns and the one row of score/*.csv in github.com/ShishirPatil/gorilla (V4 of BFCL).
LIVE = """Rank,Model,Live Overall Acc,AST Summary,Python Simple AST,Python Multiple AST,\
Python Parallel AST,Python Parallel Multiple AST,Irrelevance Detection,Relevance Detection
1,Glyphh Ada 1.1 (HDC+FC),74.32%,74.32%,84.11%,71.89%,75.00%,75.00%,89.71%,N/A"""
NON_LIVE = """Rank,Model,Non-Live Overall Acc,AST Summary,Simple AST,Python Simple AST,\
Java Simple AST,JavaScript Simple AST,Multiple AST,Parallel AST,Parallel Multiple AST,\
Irrelevance Detection
1,Glyphh Ada 1.1 (HDC+FC),88.71%,88.71%,80.83%,94.50%,76.00%,72.00%,94.50%,91.50%,\
88.00%,85.42%"""
OVERALL = """Rank,Overall Acc,Model,Non-Live AST Acc,Non-Live Simple AST,\
Non-Live Multiple AST,Live Acc,Live Simple AST,Live Multiple AST,Relevance Detection
1,74.50%,Glyphh Ada 1.1 (HDC+FC),88.71%,80.83%,94.50%,74.32%,84.11%,71.89%,87.00%"""

# Metrics beside what the benchmarks keep, as Evalchemy's eval_instruct.py return them.
EVALCHEMY = {
  'AIME24': {'examples': [], 'num_total': 30, 'accuracy_avg': 0.2, 'num_repeat': 5},
  'AIME25': {'num_total': 30, 'accuracy_avg': 0.1},
  'AMC23': {'num_total': 40, 'run_stats': [], 'accuracy_avg': 0.55},
  'MATH500': {'num_total': 500, 'num_solved': 375, 'accuracy': 0.75},
  'LiveCodeBench': {'accuracy_avg': 0.135, 'accuracy_easy_avg': 0.5},
  'HumanEvalPlus': {'python_pass@1': 0.7},
  'MBPPPlus': {'pass@1': 0.6},
}
MEMORY = {'HotpotQA 7K': 80, 'HotpotQA 14K': 70, 'SQuAD 32K': 60}


def results(path: pathlib.Path, tasks: dict, **fields) -> pathlib.Path:
  """A results_DATE.json in the folder `path`."""
  path.mkdir(parents=True, exist_ok=True)
  file = path / 'results_2026-03-22T23-35-02.990862.json'
  document = {'results': tasks, 'config': {'model': 'hf', 'limit': None}}
  document |= {'model_name': 'Qwen/Qwen3-1.7B-Base'} | fields
  file.write_text(json.dumps(document))
  return file


def bfcl(path: pathlib.Path, **texts: str) -> pathlib.Path:
  """A folder with data_live.csv and data_non_live.csv, or the files given."""
  path.mkdir(parents=True)
  for name, text in (texts or {'data_live': LIVE, 'data_non_live': NON_LIVE}).items():
    (path / f'{name}.csv').write_text(text)  # without a newline at the end, as BFCL
  return path


def plain(path: pathlib.Path, rows: dict[tuple[str, str], object]) -> pathlib.Path:
  lines = [f'{model},{column},{score}' for (model, column), score in rows.items()]
  path.write_text('\n'.join(['model,benchmark,score', *lines, '']))
  return path
