"""Orthonormal rows in float32, from products and small eigenproblems alone.

XLA:CPU compiles a product in a fifth of the time of a reduction; XLA:TPU has it in its
matrix unit.
"""

import jax
import jax.numpy as jnp
import numpy as np


def dot(spec: str, *operands: jax.Array) -> jax.Array:
  return jnp.einsum(spec, *operands, precision='highest')


def transposed(x_RxP: jax.Array) -> jax.Array:
  """x^T, PxR, as an array of its own.

  XLA folds a transpose into the product that takes it, and XLA:CPU splits the sums of
  (RxP)^T RxC by the number of its threads; those of PxR RxC it does not.
  """
  return jax.lax.optimization_barrier(x_RxP.T)


def project_out(w_PxC: jax.Array, v_MxC: jax.Array) -> jax.Array:
  return w_PxC - dot('pm,mc->pc', dot('pc,mc->pm', w_PxC, v_MxC), v_MxC)


def orthonormal(w_PxC: jax.Array, least: jax.Array | float) -> jax.Array:
  """Rows spanning those of `w`; directions no longer than `least` become zero rows.

  Their Gram matrix resolves directions down to sqrt(EPS) of the longest; the shorter
  ones are rotated apart and rescaled, but orthonormal only after a second call.
  """
  q_PxP, _ = eigh(gram(w_PxC))
  w_PxC = dot('pq,pc->qc', q_PxP, w_PxC)
  square_P = squares(w_PxC)
  return w_PxC * jnp.where(square_P > least**2, jax.lax.rsqrt(square_P), 0.0)[:, None]


def reciprocal(x: jax.Array) -> jax.Array:
  """1 / x, and 0 of 0."""
  return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)


def squares(w_PxC: jax.Array) -> jax.Array:
  """|w_p|^2."""
  return inner(w_PxC, w_PxC)


def total_square(delta_RxC: jax.Array) -> jax.Array:
  """||delta||^2, rows first: XLA:CPU splits long sums by the number of its threads."""
  return jax.lax.optimization_barrier(jnp.sum(delta_RxC**2, axis=1)).sum()


def inner(w_PxC: jax.Array, x_PxC: jax.Array) -> jax.Array:
  """<w_p, x_p>, by a product: XLA compiles that in a fifth of the time of a reduction."""
  of_all_PxP = dot('pc,qc->pq', w_PxC, x_PxC)
  return jnp.sum(jnp.where(np.eye(len(w_PxC), dtype=bool), of_all_PxP, 0.0), axis=1)


def gram(w_PxC: jax.Array) -> jax.Array:
  return dot('pc,qc->pq', w_PxC, w_PxC)


def eigh(gram_MxM: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(vectors in columns, values ascending); only the lower triangle is read."""
  return jax.lax.linalg.eigh(gram_MxM, symmetrize_input=False)
