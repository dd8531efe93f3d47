"""Everything a compiled step depends on, and the dtypes in which weights reach it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from resmerge_jax.linalg.head import block_size
from resmerge_jax.methods.table import method_of, needs_whole_matrix
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.plan.stacks import Chosen, Step
from resmerge_jax.sharding import mesh_for, padded
from resmerge_jax.types import DTYPES, Family

# 'save': the update is returned too, as recipes keep it. It comes from one: 'replay', as
# it is there; 'refit', its coefficients anew from what was measured.
RecipeUse = Literal['', 'save', 'replay', 'refit']


class ScanAt(NamedTuple):
  """A scan: of the method, or of the post-processor with these parameters."""

  number: int
  post: Any = None


@dataclasses.dataclass(frozen=True)
class KernelSpec:
  """What a program is compiled for; equal specs share one.

  `layers` and `rows` are a step's shape before padding. `head_given`: the heads come
  as an argument (exact ones, from the host) instead of being computed. `mesh_shape`:
  devices along layers and rows if the user has set them. `scan`: this scan instead of the
  merge. `found`: name, shape and dtype of what the scans before found, or of what a
  recipe holds. `whole`: which experts have whole tensors (None: all); `rank`: of the
  others' factors. `measure`: a frozen dataclass that is called in place of the merge
  (kernels.Measured).
  Of a sweep: `ranks`, of heads that are solved together (none: the
  method's alone); `lends`: heads and what `Refit.measure` found are returned for other
  settings; `update_given`: `found` holds a_N and w_T of the update too.
  """

  params: Any
  family: Family | None
  layers: int
  rows: int
  cols: int
  n_experts: int
  base_dtype: str
  expert_dtype: str
  out_dtype: str
  head_given: bool = False
  mesh_shape: tuple[int, int] | None = None
  post: tuple[Any, ...] = ()
  scan: ScanAt | None = None
  found: tuple[tuple[str, tuple[int, ...], str], ...] = ()
  recipe: RecipeUse = ''
  whole: tuple[int, ...] | None = None
  rank: int = 0
  measure: Any = None
  ranks: tuple[int, ...] = ()
  lends: bool = False
  update_given: bool = False

  @property
  def n_whole(self) -> int:
    return self.n_experts if self.whole is None else len(self.whole)

  @property
  def head_rank(self) -> int:
    """k, at most the short side; 0 where the method wants no head."""
    if self.scan is not None and self.scan.post is None:
      return 0
    return min(method_of(self.params).head_rank(self.params), self.rows, self.cols)

  @property
  def start_shape(self) -> tuple[int, int]:
    """PxC of the solver's random start."""
    return (block_size(max(self.solved)) if self.head_rank else 0, self.cols)

  @property
  def solved(self) -> tuple[int, ...]:
    """The ranks of the heads that the program solves, or is given."""
    return (self.head_rank,) if self.head_given else self.ranks or (self.head_rank,)

  def alone(self) -> 'KernelSpec':
    """The same merge with its head given, for this setting alone."""
    return dataclasses.replace(self, head_given=True, ranks=(), lends=False)

  def mesh(self, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    """The mesh of this step.

    On rows alone where these are independent. Methods of whole matrices other than
    sums over rows (those with heads) take all rows on one device.
    """
    fixed = self.mesh_shape
    whole = needs_whole_matrix(self.params, self.post)
    if fixed and not whole:
      fixed = 1, fixed[0] * fixed[1]
    apart = whole and not self.head_rank
    if fixed and apart:
      fixed = fixed[0] * fixed[1], 1
    return mesh_for(self.layers, 1 if apart else self.rows, devices, fixed)

  def padded_shape(self, devices: Sequence[jax.Device]) -> tuple[int, int, int]:
    """LxRxC of the arrays the compiled step takes on these devices."""
    mesh = self.mesh(devices)
    return (*padded(self.layers, self.rows, mesh), self.cols)


def staged_dtype(code: str) -> Any:
  """The dtype in which stored weights reach the device: float64 goes as float32."""
  return DTYPES['F32' if code == 'F64' else code]


def device_dtype(code: str) -> Any:
  """The dtype of a kernel's arrays: bfloat16 goes as its bits (see `widen`)."""
  return np.dtype(np.uint16) if code == 'BF16' else staged_dtype(code)


def as_bits(staged: np.ndarray) -> np.ndarray:
  """A staged array as kernels take it."""
  return staged.view(np.uint16) if staged.dtype == DTYPES['BF16'] else staged


def step_spec(
  step: Step,
  mesh_shape: tuple[int, int] | None = None,
  found: Mapping[str, np.ndarray] | None = None,
  scan: ScanAt | None = None,
  recipe: RecipeUse = '',
  measure: Any = None,
  ranks: Sequence[int] = (),
) -> KernelSpec:
  """The program that computes a step. `found`: of one of its tensors.

  `ranks`: of heads to be solved together, which short matrices do not all have.
  """
  stack = step.stack
  chosen = stack.chosen
  if not step.present[0]:  # rows the base lacks: the mean of the experts that have them
    chosen = Chosen(TaskArithmetic())
  n_experts, whole = len(stack.dtypes) - 1, tuple(i - 1 for i in stack.sources[1:])
  spec = KernelSpec(
    params=chosen.method,
    post=chosen.post,  # a scan keeps it, to lie on the devices as its merge does
    family=None,
    layers=stack.layers,
    rows=stack.rows,
    cols=stack.n_cols,
    n_experts=n_experts,
    base_dtype=stack.dtypes[0],
    expert_dtype=stack.expert_dtype,
    out_dtype=stack.out_dtype,
    mesh_shape=mesh_shape,
    scan=scan,
    recipe=recipe,
    found=tuple((k, x.shape, x.dtype.name) for k, x in sorted((found or {}).items())),
    whole=whole if len(whole) < n_experts else None,
    rank=stack.rank,
    measure=measure,
  )
  if not spec.head_rank:
    return spec
  solved = {spec.head_rank, *(min(k, spec.rows, spec.cols) for k in ranks)}
  several = tuple(sorted(solved)) if len(solved) > 1 else ()
  return dataclasses.replace(spec, family=stack.family, ranks=several)
