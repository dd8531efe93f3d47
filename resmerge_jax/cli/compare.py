"""Compares the numbers of two checkpoints, tensor by tensor.

Reads both in blocks of rows, so memory stays small for models of any size. For each
tensor that differs, those with NaN first, then by relative difference:

  relative   ||A - B|| / ||A||, Frobenius norms over the finite entries
  max        the largest |a - b|
  bf16       the largest |a - b| in units of bfloat16 spacing at max(|a|, |b|)
  differ     share of the entries that are not equal; NaN equals NaN
  nan        entries that are NaN on one side only; the columns before leave them out

bfloat16, float16, float32 and float64 compare by value, whatever each side stores.

Exit status, as of diff: 0 every value is equal; 1 values, shapes or names differ;
2 trouble: a folder that cannot be read, a wrong flag.

Examples:
  Is the result of two runs the same?
    python -m tools.compare out/a out/b
  The ten tensors that a merge moved most:
    python -m tools.compare out/tiny/base out/merged --rows=10
  For programs:
    python -m tools.compare out/a out/b --json
"""

import json

from absl import flags

from resmerge_jax.checkpoint.difference import compare_checkpoints
from resmerge_jax.checkpoint.difference_report import as_json, as_table
from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.cli.app import run_app
from resmerge_jax.errors import InputError

_TROUBLE = 2


def _define_flags() -> None:
  flags.DEFINE_bool('json', False, 'one JSON object with every tensor, not a table')
  flags.DEFINE_integer('rows', 50, 'rows of the table at most', lower_bound=1)


def main(argv: list[str]) -> int:
  """Compares two folders and prints the result; returns the exit status."""
  if len(argv) != 3:
    raise InputError(
      f'{len(argv) - 1} folders given, two are wanted',
      fix='python -m tools.compare A B',
    )
  a = open_checkpoint(argv[1], role='A')
  b = open_checkpoint(argv[2], role='B')
  with reader_of(a) as reader_a, reader_of(b) as reader_b:
    found = list(compare_checkpoints(a, b, reader_a, reader_b))
  if flags.FLAGS.json:
    print(json.dumps(as_json(found), indent=2))
  else:
    print('\n'.join(as_table(found, flags.FLAGS.rows)))
  return 0 if all(item.is_equal for item in found) else 1


def run() -> None:
  """Entry point of `resmerge-compare` and `python -m tools.compare`."""
  _define_flags()
  run_app(main, __doc__, error_status=_TROUBLE)
