"""Same-shaped tensors as layer stacks, and the steps that stacks are cut into.

A step is what is read, computed and written at once: some layers of a stack with
all their rows, or, where rows are independent, a block of rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from resmerge_jax.plan.rules import Action, Rule
from resmerge_jax.types import DTYPES, FLOAT_CODES, Family, TensorRef

FLOAT32 = 4


class Chosen(NamedTuple):
  """How a tensor is merged: parameters of a method (None: copied) and of what follows it.

  `whole`: all rows of a matrix must be together. `scans`: how often it is read before.
  `scratch`: bytes that its program needs per entry of a matrix beside what is stored;
  with `in_blocks` one float32 matrix less, on a CPU that holds all rows.
  `matrix_scratch`: bytes that it needs for one matrix of this tensor besides.
  `redone`: whether a matrix may be merged once more, on the host. `on_factors`: whether
  products of factors are merged without forming them. `loses_rank`: updates up to this
  rank come out as nothing. `spans`: as of a method.
  """

  method: Any
  post: tuple[Any, ...] = ()
  whole: bool = False
  scans: int = 0
  scratch: int = 0
  in_blocks: bool = False
  matrix_scratch: int = 0
  redone: bool = False
  on_factors: bool = False
  loses_rank: int = 0
  spans: str = ''

  def __str__(self) -> str:
    """'Ties(keep=0.2) then Liti(eta=0.5)', with what differs from the defaults."""
    if self.method is None:
      return 'copied'
    return ' then '.join(_described(params) for params in (self.method, *self.post))


def _described(params: Any) -> str:
  fields = [
    f'{field.name}={value!r}'
    for field in dataclasses.fields(params)
    if (value := getattr(params, field.name)) != field.default
  ]
  return f'{type(params).__name__}({", ".join(fields)})'


Choose = Callable[[Rule, TensorRef], Chosen]


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
  """Tensors with one shape (matrix view), one way to be merged, equal stored dtypes.

  `dtypes` are those of the base and of each expert. `sources` are those that have whole
  tensors to read: 0, the base, and experts that are models; a copy needs no expert.
  `rank` is the largest of their factors, 0 if there are none. `family` is None where the
  action does not depend on it. `present[i]`: whether source i has them; an expert that
  has not counts as unchanged. Among `names` are parts of tensors (`TensorRef.part`),
  each a matrix of its own. `layers` x `rows` is the shape of one step. `swept`:
  whether a step has several outputs, those of a sweep, computed in turn. `reads_ahead`:
  whether the system reads all sources before there is a buffer (`Checkpoint.reads_ahead`).
  """

  action: Action
  chosen: Chosen
  family: Family | None
  n_rows: int
  n_cols: int
  dtypes: tuple[str, ...]
  out_dtype: str
  present: tuple[bool, ...]
  names: tuple[str, ...]
  sources: tuple[int, ...]
  rank: int = 0
  swept: bool = False
  reads_ahead: bool = False
  layers: int = 1
  rows: int = 1

  @property
  def n_experts(self) -> int:
    """As staged: none for a copy."""
    return 0 if self.action == 'base' else len(self.dtypes) - 1

  @property
  def expert_dtype(self) -> str:
    """One dtype for all whole tensors of experts: their own, or float32 if they differ."""
    codes = {self.dtypes[i] for i in self.sources[1:]} or {self.dtypes[0]}
    return codes.pop() if len(codes) == 1 else 'F32'

  @property
  def is_formed(self) -> bool:
    """Whether a program makes float32 task vectors before it merges."""
    whole = len(self.sources) - 1
    has_products = whole < self.n_experts or self.rank > 0
    return has_products and (whole > 0 or not self.chosen.on_factors)

  @property
  def is_float(self) -> bool:
    return self.dtypes[0] in FLOAT_CODES

  @property
  def row_bytes(self) -> int:
    """Bytes of one row over all sources as staged (mixed dtypes become float32)."""
    codes = [self.dtypes[0], *[self.expert_dtype] * (len(self.sources) - 1)]
    return sum(self.n_cols * DTYPES[code].itemsize for code in codes)

  @property
  def factor_bytes(self) -> int:
    """Bytes of the factors of one layer as staged."""
    return self.n_experts * self.rank * (self.n_rows + self.n_cols) * FLOAT32


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
  """Rows [row_start, row_stop) of the tensors `names` of one stack.

  `present[i]` tells whether source i has these rows (vocabularies may differ).
  """

  stack: Stack
  names: tuple[str, ...]
  row_start: int
  row_stop: int
  present: tuple[bool, ...]

  @property
  def label(self) -> str:
    """What progress shows: 'model.layers.0.mlp.up_proj.weight and 3 like it'."""
    more = f' and {len(self.names) - 1} like it' if len(self.names) > 1 else ''
    return self.names[0] + more

  @property
  def nbytes(self) -> int:
    """Bytes to read; of factors, those of whole matrices as they are staged."""
    rows = self.row_stop - self.row_start
    factors = self.stack.factor_bytes * rows // max(self.stack.n_rows, 1)
    return len(self.names) * factors + sum(
      len(self.names) * rows * self.stack.n_cols * DTYPES[self.stack.dtypes[i]].itemsize
      for i in self.stack.sources
      if self.present[i]
    )
