"""What a merge method is: one pure function on one matrix, and what it returns."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.errors import InputError
from resmerge_jax.linalg.head import Head
from resmerge_jax.linalg.products import combined
from resmerge_jax.linalg.task_vectors import Products, TaskVectors
from resmerge_jax.types import Family

# einsum is the better kernel beyond this many rank-one terms; below it they fuse
# into the pass over the task vectors and cost nothing.
FUSED_TERMS = 8


class LowRank(NamedTuple):
  """sum_i a_i delta_i + sum_t w_t u_t v_t^T: applied in one fused pass."""

  a_N: jax.Array
  w_T: jax.Array
  u_TxR: jax.Array
  v_TxC: jax.Array


class Dense(NamedTuple):
  """An update that has no such form."""

  update_RxC: jax.Array


Update = LowRank | Dense
# 'hidden': matrices but embeddings and LM head, by the release's table of names; 'matrices':
# all of two dimensions; 'all': every floating tensor. The rest gets task arithmetic.
Scope = Literal['hidden', 'matrices', 'all']
Stats = dict[str, jax.Array]  # scalars or small vectors for the tensor's record


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What a method may know of one matrix beside its weights.

  `weights_N` float32, one per expert, as resolved for this tensor. `keys_Nx2` uint32: a
  random key per expert of (seed, expert id, tensor name). `row_start` int32: row of the
  tensor at which this block begins, so that random numbers do not depend on blocks.
  `layer` int32: number of the decoder layer, -1 outside them; `n_layers` int32.
  `found`: what the method's scans found out for this tensor.
  """

  weights_N: jax.Array
  keys_Nx2: jax.Array
  row_start: jax.Array
  layer: jax.Array
  n_layers: jax.Array
  found: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


class MergeFn(Protocol):
  def __call__(
    self,
    delta_NxRxC: TaskVectors,
    head: Head | None,
    *,
    context: Context,
    family: Family | None,
    params: Any,
  ) -> tuple[Update, Stats]:
    """The update to add to the base. `head` is stacked over experts (NxK...)."""


class Measure(Protocol):
  def __call__(
    self, delta_NxRxC: TaskVectors, *, context: Context, params: Any
  ) -> dict[str, jax.Array]:
    """Sums over one block of rows, float32 or int32; blocks add up on the host.

    `context.found` is what the scan before this one found.
    """


class MeasureUpdate(Protocol):
  def __call__(
    self, update: Update, delta_NxRxC: TaskVectors, *, params: Any
  ) -> dict[str, jax.Array]:
    """The same of the update that a post-processor is going to change."""


Findings = Mapping[str, Mapping[str, np.ndarray]]
Totals = Mapping[str, Mapping[str, np.ndarray]]  # tensor name -> sums, float64 or int64


@dataclasses.dataclass(frozen=True)
class TensorFacts:
  """What `Scan.finish` may know of a tensor. `layer` is -1 outside the decoder layers.

  `copies`: how often the tensor counts, 2 for an embedding that is also the LM head.
  """

  shape: tuple[int, ...]
  layer: int
  n_layers: int
  copies: int = 1


@dataclasses.dataclass(frozen=True)
class Scan:
  """One reading pass over all tensors of a method, before the pass that merges.

  That of a post-processor comes after those of the methods: it merges, and measures.

  `measure` is traced per block of rows. Its sums are added up per tensor, or, with
  `whole_model`, over all tensors at once: `totals` then has the one key ''. With
  `copies` a tensor that is two of the model's (see TensorFacts) counts twice.
  `finish(totals, facts, params, before)` runs on the host and returns what
  `context.found` holds from the next pass on, beside what the scans `before` found:
  by tensor name, or for all under ''.
  """

  measure: Any  # a Measure, of a post-processor a MeasureUpdate
  finish: Callable[[Totals, Mapping[str, TensorFacts], Any, Findings], Findings]
  whole_model: bool = False
  copies: bool = False


class MeasureFn(Protocol):
  def __call__(
    self, delta_NxRxC: TaskVectors, head: Head, *, params: Any
  ) -> dict[str, jax.Array]:
    """The numbers, float32, of the shapes that `Refit.shapes` tells."""


class RefitFn(Protocol):
  def __call__(
    self,
    measured: Mapping[str, jax.Array],
    u_TxR: jax.Array,
    v_TxC: jax.Array,
    *,
    family: Family | None,
    params: Any,
  ) -> tuple[LowRank, Stats]:
    """The update of rank-one terms u v^T and of what was measured."""


@dataclasses.dataclass(frozen=True)
class Refit:
  """How an update follows from a few numbers and its vectors, without the matrices.

  `merge` of the method is `update` of `measure`. `fields`: parameters on which neither
  `measure` nor the head depends, so that they can be changed afterwards. `measures`:
  those on which `measure` depends, the head's rank aside. `shapes(n)`: of what it
  returns for n experts.
  """

  fields: tuple[str, ...]
  measures: tuple[str, ...]
  shapes: Callable[[int], Mapping[str, tuple[int, ...]]]
  measure: MeasureFn
  update: RefitFn


@dataclasses.dataclass(frozen=True)
class Method:
  """One entry of the table of methods.

  `head_rank(params)` is the number of leading triplets per expert that `merge` wants (0:
  none; the pipeline then computes no head). `branches` names the integer codes of the
  record's `branch`. `whole_matrix(params)` is False where each row of the result
  depends on that row alone (and on what `scans(params)` found), so that matrices may go
  through in row blocks. `float64` methods are traced with 64-bit types enabled and run
  on CPU. `gets`: which tensors the method gets if the user has no rules of his own;
  `outside(params, N)`: parameters for the others (None: the mean of the updates).
  `expects(params, N)`: what it wants instead of N experts, None if N suits it.
  `scratch`: bytes that its program keeps per entry of a matrix (measured), beside the
  stored weights and the output; `block_scratch(N)`: the same per entry of a block of
  rows (`linalg.short_side`). `terms(params, N, K)`: T of the LowRank that `merge`
  returns, None if it is Dense. `refit`: how other parameters need no other head.
  `on_factors`: `merge` takes the task vectors through `linalg.gram` and as a combination
  alone, so that products of factors (LoRA adapters) need not be formed. `loses_rank`:
  updates up to this rank come out as nothing. `spans`: directions of the short side that
  get weight whether updates have them or not: all of their 'sum', or the N-th part 'each'.
  """

  name: str
  source: str
  params: type
  merge: MergeFn
  head_rank: Callable[[Any], int] = lambda params: 0  # noqa: ARG005
  branches: tuple[str, ...] = ()
  takes_weights: bool = False
  whole_matrix: Callable[[Any], bool] = lambda params: True  # noqa: ARG005
  float64: bool = False
  scans: Callable[[Any], tuple[Scan, ...]] = lambda params: ()  # noqa: ARG005
  gets: Callable[[Any], Scope] = lambda params: 'all'  # noqa: ARG005
  outside: Callable[[Any, int], Any] = lambda params, n: None  # noqa: ARG005
  expects: Callable[[Any, int], str | None] = lambda params, n: None  # noqa: ARG005
  scratch: int = 4  # an update, or one task vector, in float32
  block_scratch: Callable[[int], int] = lambda n: 0  # noqa: ARG005
  terms: Callable[[Any, int, int], int | None] = lambda params, n, k: None  # noqa: ARG005
  refit: Refit | None = None
  on_factors: bool = False
  loses_rank: Callable[[Any], int] = lambda params: 0  # noqa: ARG005
  spans: Literal['', 'sum', 'each'] = ''


class PostFn(Protocol):
  def __call__(
    self, update: Update, delta_NxRxC: TaskVectors, *, context: Context, params: Any
  ) -> tuple[Update, Stats]:
    """The update in place of `update`, which a method or the post before it made."""


@dataclasses.dataclass(frozen=True)
class Post:
  """A post-processor: changes the update that any method made. Fields as in Method.

  One that has scans gets every tensor, so it cannot be for whole matrices. `keeps_form`:
  a LowRank update stays one, with the same vectors.
  """

  name: str
  source: str
  params: type
  apply: PostFn
  whole_matrix: bool = False
  float64: bool = False
  block_scratch: Callable[[int], int] = lambda n: 0  # noqa: ARG005
  scans: Callable[[Any], tuple[Scan, ...]] = lambda params: ()  # noqa: ARG005
  keeps_form: bool = False


def check_params(method: str, params: Any, **expected: tuple[bool, str]) -> None:
  """Refuses fields of `params`: each `field=(is right, 'what was expected')`.

  Raises:
    InputError: naming all that are wrong, with what they are.
  """
  wrong = [
    f'{field}: got {getattr(params, field)!r}, expected {text}'
    for field, (ok, text) in expected.items()
    if not ok
  ]
  if wrong:
    raise InputError(f'{method}: parameters out of range', wrong)


def scaled(update: Update, factor: jax.Array | float) -> Update:
  """The update times a number."""
  if isinstance(update, Dense):
    return Dense(factor * update.update_RxC)
  return update._replace(a_N=factor * update.a_N, w_T=factor * update.w_T)


def rank_one_terms(head: Head) -> tuple[jax.Array, jax.Array]:
  """u_TxR and v_TxC of the heads of all experts, one after the other; T = N K."""
  n_rows, n_cols = head.y_KxR.shape[-1], head.v_KxC.shape[-1]
  return head.y_KxR.reshape(-1, n_rows), head.v_KxC.reshape(-1, n_cols)


def combination(a_N: jax.Array, delta_NxRxC: TaskVectors | Products) -> LowRank:
  """sum_i a_i D_i."""
  n_rows, n_cols = delta_NxRxC.shape
  w_T, u_TxR, v_TxC = (
    jnp.zeros(shape, jnp.float32) for shape in ((0,), (0, n_rows), (0, n_cols))
  )
  return LowRank(a_N, w_T, u_TxR, v_TxC)


def apply_update(update: Update, delta_NxRxC: TaskVectors | Products) -> jax.Array:
  """The update as a float32 matrix RxC."""
  if isinstance(update, Dense):
    return update.update_RxC
  if isinstance(delta_NxRxC, Products):
    out_RxC = combined(update.a_N, delta_NxRxC)
  else:
    out_RxC = jnp.zeros(delta_NxRxC.shape, jnp.float32)  # also with 64 bits enabled
    for i in range(len(delta_NxRxC)):
      out_RxC += update.a_N[i] * delta_NxRxC[i]
  n_terms = update.w_T.shape[0]
  if n_terms > FUSED_TERMS:
    return out_RxC + jnp.einsum(
      't,tr,tc->rc', update.w_T, update.u_TxR, update.v_TxC, precision='highest'
    )
  for t in range(n_terms):
    out_RxC += (update.w_T[t] * update.u_TxR[t])[:, None] * update.v_TxC[t][None, :]
  return out_RxC
