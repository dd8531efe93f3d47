"""Makes tables of benchmark scores, as the ResMerge paper prints them.

Takes files and folders, each as PATH or NAME=PATH, where NAME is how the table calls the
model:

  results_*.json   of Evalchemy or lm-evaluation-harness
  data_live.csv    of BFCL, data_non_live.csv, or, if it is named, data_overall.csv
  any other CSV    with the head model,benchmark,score, in percent; a score for a
                   category's name or for Overall is a printed average, and is checked
  a folder         all results_*.json, data_live.csv and data_non_live.csv in it

and prints a row per model: benchmarks, the average of each category, the overall average
(the unweighted mean of the categories), the difference to --baseline and the rank (equal
numbers share a rank). A score that is not there is shown as missing, and no average is
formed over it. The categories are the paper's; --categories=FILE has others.

Examples:
  Two merges, each evaluated by Evalchemy and by BFCL:
    python -m tools.scores ResMerge=logs/resmerge ResMerge=score/resmerge
      TIES=logs/ties TIES=score/ties --baseline=TIES
  What MemAgent printed beside them, and the table as files:
    python -m tools.scores ResMerge=logs/resmerge memory.csv
      --output=scores.md,scores.html,scores.csv
  Do the averages of a published table follow from its rows?
    python -m tools.scores table.csv
"""

import pathlib
import sys

from absl import flags

from resmerge_jax.cli.app import run_app
from resmerge_jax.errors import InputError
from resmerge_jax.scores.categories import load_categories
from resmerge_jax.scores.gather import gather
from resmerge_jax.scores.render import SUFFIXES, render
from resmerge_jax.scores.table import check_printed, make_rows


def _define_flags(argv: list[str]) -> list[str]:
  flags.DEFINE_string(
    'categories',
    None,
    "TOML file of categories, benchmarks and where scores are found (default: the paper's)",
  )
  flags.DEFINE_string('baseline', None, 'model that the others are compared with')
  flags.DEFINE_list(
    'output', [], f'files to write beside printing: {", ".join(SUFFIXES)}'
  )
  return argv


def main(argv: list[str]) -> None:
  """Prints the table as Markdown and writes it to the --output files."""
  if len(argv) < 2:
    raise InputError('no scores given', fix='python -m tools.scores [NAME=]PATH ...')
  flag = flags.FLAGS
  outputs = [pathlib.Path(path) for path in flag.output]
  wrong = [str(path) for path in outputs if path.suffix not in SUFFIXES]
  if wrong:
    raise InputError(
      '--output: no table is written so', wrong, fix=f'use {", ".join(SUFFIXES)}'
    )
  categories = load_categories(flag.categories and pathlib.Path(flag.categories))
  scores, notes = gather(argv[1:], categories)
  rows = make_rows(scores, categories, flag.baseline)
  printed = check_printed(scores, rows, categories)
  for path in outputs:
    text = render(path.suffix, rows, categories, flag.baseline, printed)
    try:
      path.write_text(text + '\n', 'utf-8')
    except OSError as error:
      raise InputError(f'--output={path}: cannot be written: {error}') from error
  for note in notes:
    print(f'note: {note}', file=sys.stderr)
  print(render('.md', rows, categories, flag.baseline, printed))


def run() -> None:
  """Entry point of `resmerge-scores` and `python -m tools.scores`."""
  run_app(main, __doc__, define=_define_flags)
