"""The minimum of a strictly convex quadratic in a box, for a few unknowns.

An active set method: on a face of the box the minimum is one linear system, and faces
are changed one bound at a time so that the value always falls. It ends at the minimum
after finitely many faces; the answer does not depend on where it began.
"""

import jax
import jax.numpy as jnp

MAX_FACES = 8  # per unknown, a stop for safety; none of thousands met more than 3
ROUNDING = 2e-6  # slope at a bound, of unknowns up to 1, that rounding leaves of 0


def minimum_in_box(a_NxN: jax.Array, c_N: jax.Array, most_N: jax.Array) -> jax.Array:
  """argmin over 0 <= x_i <= most_i of 1/2 x^T A x - c^T x, float32 N.

  A symmetric, its eigenvalues well above the rounding of float32; c and most at most
  about 1 in size. See `slack` for how good the answer is.
  """
  x_N = jnp.clip(_on_face(a_NxN, c_N, jnp.zeros_like(c_N), most_N > 0), 0.0, most_N)
  free_N = (x_N > 0) & (x_N < most_N)
  faces = MAX_FACES * len(c_N)

  def goes_on(state: tuple) -> jax.Array:
    _, _, done, face = state
    return ~done & (face < faces)

  def next_face(state: tuple) -> tuple:
    x_N, free_N, _, face = state
    x_N, free_N, done = _step(a_NxN, c_N, most_N, x_N, free_N)
    return x_N, free_N, done, face + 1

  start = (x_N, free_N, jnp.bool_(False), jnp.int32(0))
  return jax.lax.while_loop(goes_on, next_face, start)[0]


def slack(
  a_NxN: jax.Array, c_N: jax.Array, most_N: jax.Array, x_N: jax.Array
) -> jax.Array:
  """max_i |x - clip(x - (A x - c), 0, most)|: 0 at the minimum, and nowhere else.

  The minimum is within (1 + L) / m times sqrt(N) of that, m and L the extreme
  eigenvalues of A.
  """
  return jnp.abs(x_N - jnp.clip(x_N - _slope(a_NxN, c_N, x_N), 0.0, most_N)).max()


def _slope(a_NxN: jax.Array, c_N: jax.Array, x_N: jax.Array) -> jax.Array:
  """A x - c, without a matrix product, which accelerators would round."""
  return (a_NxN * x_N).sum(1) - c_N


def _step(
  a_NxN: jax.Array,
  c_N: jax.Array,
  most_N: jax.Array,
  x_N: jax.Array,
  free_N: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Towards the minimum on this face: up to the first bound, or there and off a bound.

  Returns the point, the free unknowns, and whether the point is the minimum.
  """
  at = jnp.arange(len(c_N))
  best_N = _on_face(a_NxN, c_N, x_N, free_N)
  way_N = best_N - x_N
  room_N = jnp.where(way_N > 0, most_N - x_N, x_N)
  blocked_N = free_N & (jnp.abs(way_N) > room_N)
  share_N = jnp.where(blocked_N, room_N / jnp.where(blocked_N, jnp.abs(way_N), 1), 1.0)
  is_blocked, first = blocked_N.any(), jnp.argmin(share_N)
  bound_N = jnp.where(way_N > 0, most_N, 0.0)
  reached_N = jnp.where(at == first, bound_N, x_N + share_N.min() * way_N)

  slope_N = _slope(a_NxN, c_N, best_N)
  inward_N = jnp.where(best_N > 0, slope_N, -slope_N)  # how much leaving a bound gains
  inward_N = jnp.where(free_N | (most_N <= 0), 0.0, inward_N)
  gains = inward_N.max() > ROUNDING
  freed_N = free_N | (gains & (at == jnp.argmax(inward_N)))

  x_N = jnp.where(is_blocked, jnp.clip(reached_N, 0.0, most_N), best_N)
  free_N = jnp.where(is_blocked, free_N & (at != first), freed_N)
  return x_N, free_N, ~is_blocked & ~gains


def _on_face(
  a_NxN: jax.Array, c_N: jax.Array, x_N: jax.Array, free_N: jax.Array
) -> jax.Array:
  """The minimum over the free unknowns, the others as in x (Gauss-Jordan).

  A needs no pivoting. Elementwise, so that all backends give float32 and a stack of
  matrices what each gives alone.
  """
  n = len(c_N)
  unit_NxN = jnp.eye(n, dtype=a_NxN.dtype)
  fixed_N = jnp.where(free_N, 0.0, x_N)
  right_N = jnp.where(free_N, -_slope(a_NxN, c_N, fixed_N), x_N)
  both_NxN = free_N[:, None] & free_N[None, :]
  system = jnp.column_stack([jnp.where(both_NxN, a_NxN, unit_NxN), right_N])

  def eliminate(i: jax.Array, system: jax.Array) -> jax.Array:
    row = system[i] / system[i, i]
    return system - (system[:, i] - unit_NxN[i])[:, None] * row[None, :]

  return jax.lax.fori_loop(0, n, eliminate, system)[:, n]
