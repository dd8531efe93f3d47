"""Averages the experts that help: the greedy soup of model soups (arXiv 2203.05482).

Every expert is scored alone; then, from the best downwards, each joins the average if
that raises its score, and is left out if it does not. The score is the last line that
a command prints, a number, more is better; {model} in it stands for the folder to score.
Trial merges lie in a hidden folder beside the output, and go when they are scored.

Example:
  python -m tools.greedy_soup --base=BASE --experts=A,B,C --output=SOUP
    --score='python evaluate.py --model={model} --print_accuracy'
"""

import contextlib
import math
import pathlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from resmerge_jax.checkpoint.remote import scheme_of
from resmerge_jax.cli.app import no_arguments, run_app
from resmerge_jax.cli.runtime import keep_programs
from resmerge_jax.config import MergeConfig, config_from
from resmerge_jax.config_checks import OUTPUT_DTYPES
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.merge import merge
from resmerge_jax.pipeline.prepare import prepare

MODEL = '{model}'
SHOWN = 2000  # characters of what a failed command printed
Score = Callable[[pathlib.Path], float]


def main(argv: list[str]) -> None:
  """Finds the soup, merges it into the output, and says what joined."""
  no_arguments(argv)
  experts = flags.FLAGS.experts or []
  command = score_command(flags.FLAGS.score)
  check_folders(experts)
  prepare(_config(experts, flags.FLAGS.output, flags.FLAGS.overwrite))
  keep_programs()
  with _trials(pathlib.Path(flags.FLAGS.output)) as folder:
    chosen, score = greedy_soup(
      experts, lambda path: score_of(command, path), lambda soup: _trial(soup, folder)
    )
  manifest = merge(_config(chosen, flags.FLAGS.output, flags.FLAGS.overwrite))
  print(
    f'{manifest.output}: average of {len(chosen)} of {len(experts)} experts, score '
    f'{score:g}: {", ".join(chosen)}'
  )


def greedy_soup(
  experts: Sequence[str],
  score: Score,
  average: Callable[[Sequence[str]], contextlib.AbstractContextManager[pathlib.Path]],
) -> tuple[list[str], float]:
  """Recipe 1 of arXiv 2203.05482: the chosen experts and their average's score.

  An expert stays only where the score rises (the authors' code; the paper has >=).

  Args:
    average: makes the folder of an average, for as long as it is needed.
  """
  alone = {expert: score(pathlib.Path(expert)) for expert in experts}
  order = sorted(experts, key=alone.__getitem__, reverse=True)
  for expert in order:
    print(f'{alone[expert]:g}  {expert} alone', flush=True)
  chosen, best = order[:1], alone[order[0]]
  for expert in order[1:]:
    with average([*chosen, expert]) as folder:
      now = score(folder)
    joins = now > best
    print(f'{now:g}  with {expert}: {"joins" if joins else "left out"}', flush=True)
    if joins:
      chosen, best = [*chosen, expert], now
  return chosen, best


def score_command(text: str | None) -> list[str]:
  """The words of --score, of which at least one names the model."""
  words = shlex.split(text or '')
  if not any(MODEL in word for word in words):
    raise InputError(
      f'--score: got {text!r}, expected a command with {MODEL} in it',
      fix="write --score='python evaluate.py --model={model}'",
    )
  return words


def check_folders(experts: Sequence[str]) -> None:
  """Every expert is scored alone, by a command that opens folders."""
  if remote := [expert for expert in experts if scheme_of(expert)]:
    raise InputError(
      'experts that --score cannot open', remote, fix='copy them into local folders'
    )


def score_of(command: Sequence[str], folder: pathlib.Path) -> float:
  """The number on the last line that the command prints for this folder.

  Raises:
    InputError: it fails, or prints no number.
  """
  words = [word.replace(MODEL, str(folder)) for word in command]
  try:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
  except OSError as error:
    raise InputError(f'--score: {error}') from None
  lines = done.stdout.split('\n')
  last = next((line.strip() for line in reversed(lines) if line.strip()), '')
  try:
    number = float(last)
  except ValueError:
    number = math.nan
  if done.returncode or math.isnan(number):
    raise InputError(
      f'--score: {shlex.join(words)} ended with {done.returncode}, last line {last!r}',
      [done.stderr.strip()[-SHOWN:]] if done.stderr.strip() else [],
      fix='the command must print a number as its last line and end with 0',
    )
  return number


def _config(
  experts: Sequence[str], output: str | pathlib.Path | None, overwrite: bool = False
) -> MergeConfig:
  return config_from(
    {
      'base': flags.FLAGS.base,
      'experts': list(experts),
      'output': output,
      'method': {'name': 'linear'},
      'output_dtype': flags.FLAGS.output_dtype,
      'overwrite': overwrite,
    }
  )


@contextlib.contextmanager
def _trials(output: pathlib.Path) -> Iterator[pathlib.Path]:
  """A hidden folder beside the output, gone afterwards."""
  output.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{output.name}.soup-', dir=output.parent
  ) as path:
    yield pathlib.Path(path)


@contextlib.contextmanager
def _trial(soup: Sequence[str], folder: pathlib.Path) -> Iterator[pathlib.Path]:
  path = folder / f'{len(soup)}-{pathlib.Path(soup[-1]).name}'
  merge(_config(soup, path))
  yield path
  shutil.rmtree(path)


def _define_flags(argv: list[str]) -> list[str]:
  flags.DEFINE_string('base', None, 'folder of the base model')
  flags.DEFINE_list('experts', None, 'folders of the experts, comma-separated')
  flags.DEFINE_string('output', None, 'folder to write; must not exist or be empty')
  flags.DEFINE_string('score', None, 'command that prints the score of {model}')
  flags.DEFINE_enum(
    'output_dtype', 'bfloat16', OUTPUT_DTYPES, 'dtype of trials and output'
  )
  flags.DEFINE_boolean(
    'overwrite', False, 'replace a non-empty output once the new one is complete'
  )
  return argv


def run() -> None:
  """Entry point of `resmerge-greedy-soup` and `python -m tools.greedy_soup`."""
  run_app(main, __doc__, define=_define_flags)
