"""Task vectors as a kernel holds them: the stored weights, differences on demand."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskVectors:
  """The N experts of one matrix beside their base, as stored (see `widen`).

  `self[i]` is D_i = W_i - W_0 in float32, exact for bfloat16 weights of close size. It
  is an expression, not an array: used inside a reduction or a sum it is computed on
  the fly from the stored bytes, half of what float32 matrices would move.
  """

  base_RxC: jax.Array
  experts_NxRxC: jax.Array

  def __len__(self) -> int:
    return self.experts_NxRxC.shape[0]

  def __getitem__(self, i: int) -> jax.Array:
    if not 0 <= i < len(self):  # ends iteration; JAX would clamp
      raise IndexError(i)
    expert_RxC = jax.lax.index_in_dim(self.experts_NxRxC, i, keepdims=False)
    return widen(expert_RxC) - widen(self.base_RxC)

  @property
  def shape(self) -> tuple[int, int]:
    """(R, C)."""
    n_rows, n_cols = self.base_RxC.shape
    return n_rows, n_cols


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
