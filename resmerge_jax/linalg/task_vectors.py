"""Task vectors as a kernel holds them: the stored weights, differences on demand.

F is the rank of factors (of LoRA adapters).
"""

import dataclasses

import jax
import jax.numpy as jnp

# A rounded product of rank F has directions beside its own of about 2^-24 (F / S)^(1/2).
PRODUCT_NOISE = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskVectors:
  """The N experts of one matrix beside their base, as stored (see `widen`).

  `self[i]` is D_i = W_i - W_0 in float32, exact for bfloat16 weights of close size. It
  is an expression, not an array: used inside a reduction or a sum it is computed on
  the fly from the stored bytes, half of what float32 matrices would move.
  With `are_differences` the experts are held as float32 D_i, not as W_i. `noise`: size,
  relative to the largest singular value, of directions that rounding alone may have made.
  """

  base_RxC: jax.Array
  experts_NxRxC: jax.Array
  are_differences: bool = dataclasses.field(default=False, metadata={'static': True})
  noise: float = dataclasses.field(default=0.0, metadata={'static': True})

  def __len__(self) -> int:
    return self.experts_NxRxC.shape[0]

  def __getitem__(self, i: int) -> jax.Array:
    if not 0 <= i < len(self):  # ends iteration; JAX would clamp
      raise IndexError(i)
    expert_RxC = jax.lax.index_in_dim(self.experts_NxRxC, i, keepdims=False)
    return self.difference(expert_RxC)

  def rows(self, i: jax.Array, first: jax.Array | int, n: int) -> jax.Array:
    """`n` rows of D_i, nxC; only the program knows i and the first of them."""
    n_cols = self.base_RxC.shape[1]
    base_RxC = jax.lax.dynamic_slice_in_dim(self.base_RxC, first, n)
    expert_1xRxC = jax.lax.dynamic_slice(
      self.experts_NxRxC, (i, first, 0), (1, n, n_cols)
    )
    return dataclasses.replace(self, base_RxC=base_RxC).difference(expert_1xRxC[0])

  def every(self, n: int) -> 'TaskVectors':
    """Every n-th row of all."""
    base_RxC, experts_NxRxC = self.base_RxC[::n], self.experts_NxRxC[:, ::n]
    return dataclasses.replace(self, base_RxC=base_RxC, experts_NxRxC=experts_NxRxC)

  def difference(self, expert_RxC: jax.Array) -> jax.Array:
    """D_i of an entry of `experts_NxRxC`."""
    if self.are_differences:
      return expert_RxC
    return widen(expert_RxC) - widen(self.base_RxC)

  def weights(self) -> list[jax.Array]:
    """The W_i in float32."""
    if self.are_differences:
      return [widen(self.base_RxC) + d_RxC for d_RxC in self.experts_NxRxC]
    return [widen(expert_RxC) for expert_RxC in self.experts_NxRxC]

  @property
  def shape(self) -> tuple[int, int]:
    """(R, C)."""
    n_rows, n_cols = self.base_RxC.shape
    return n_rows, n_cols


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Products:
  """Task vectors D_i = left_i right_i in float32, which are not formed.

  What takes them (`linalg.gram`, `methods.base.apply_update`) takes TaskVectors too.
  """

  base_RxC: jax.Array
  left_NxRxF: jax.Array
  right_NxFxC: jax.Array

  def __len__(self) -> int:
    return self.left_NxRxF.shape[0]

  @property
  def shape(self) -> tuple[int, int]:
    """(R, C)."""
    n_rows, n_cols = self.base_RxC.shape
    return n_rows, n_cols


def formed(
  base_RxC: jax.Array,
  whole_MxRxC: jax.Array,
  places: tuple[int, ...],
  factors: tuple[jax.Array, jax.Array] | None,
  n: int,
) -> TaskVectors:
  """The D_i of N experts: of those at `places` from whole tensors, plus the products.

  Nothing is rounded but the float32 product itself: W_0 + left right would be.
  """
  zero_RxC = jnp.zeros(base_RxC.shape, jnp.float32)
  d_NxRxC = [zero_RxC] * n
  for at, i in enumerate(places):
    d_NxRxC[i] = widen(whole_MxRxC[at]) - widen(base_RxC)
  stacked_NxRxC = jnp.stack(d_NxRxC)
  if factors is not None:
    stacked_NxRxC += jnp.einsum('nrf,nfc->nrc', *factors, precision='highest')
  noise = 0.0 if factors is None else PRODUCT_NOISE
  return TaskVectors(base_RxC, stacked_NxRxC, are_differences=True, noise=noise)


def widen(stored: jax.Array) -> jax.Array:
  """Stored weights as float32. uint16 are the bits of bfloat16 numbers.

  XLA:CPU has no bfloat16 of its own: it would convert whole stacks back and forth.
  """
  if stored.dtype == jnp.uint16:
    return jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
  return stored.astype(jnp.float32)


def narrow(value: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """float32 numbers rounded to nearest even as `dtype`; uint16 means bfloat16 bits.

  NaN may come out as any number: whoever allows NaN must look at `value`.
  """
  if dtype != jnp.uint16:
    return value.astype(dtype)
  bits = jax.lax.bitcast_convert_type(value, jnp.uint32)
  half_less_odd = 0x7FFF + ((bits >> 16) & 1)  # ties go to the even neighbour
  return ((bits + half_less_odd) >> 16).astype(jnp.uint16)
