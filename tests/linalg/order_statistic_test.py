"""The largest magnitudes agree with a stable sort, with ties and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resmerge_jax.linalg.order_statistic import kept, kth_largest, largest
from resmerge_jax.linalg.task_vectors import TaskVectors
from tests.methods.groups import compiled

N, ROWS, COLS = 3, 16, 11
SIZE = ROWS * COLS


@functools.partial(compiled, static_argnums=1)
def answers(delta_NxRxC: TaskVectors, k: int) -> tuple:
  cut = largest(delta_NxRxC, k)
  masks = jnp.stack([kept(cut, i, delta_NxRxC[i]) for i in range(N)])
  bits_N = kth_largest(delta_NxRxC, max(k, 1))
  return jax.lax.bitcast_convert_type(bits_N, jnp.float32), masks


def stored(kind: str) -> TaskVectors:
  """Task vectors: few distinct bfloat16 differences, or float32, zeros in all."""
  rng = np.random.default_rng(0)
  if kind == 'bfloat16':  # updates near the rounding step, as RL makes them
    base_RxC = 0.02 * rng.standard_normal((ROWS, COLS))
    moved_NxRxC = base_RxC + 1e-4 * rng.standard_normal((N, ROWS, COLS))
    bits = [x.astype(ml_dtypes.bfloat16) for x in (base_RxC, moved_NxRxC)]
    return TaskVectors(*[x.view(np.uint16) for x in bits])
  delta_NxRxC = rng.standard_normal((N, ROWS, COLS)).astype(np.float32)
  delta_NxRxC[0] *= 1e-30
  delta_NxRxC[1, 3] = 0
  delta_NxRxC[2] = 0 if kind == 'zero' else 1e30 * delta_NxRxC[2]
  return TaskVectors(np.zeros((ROWS, COLS), np.float32), delta_NxRxC)


def first_largest(x_RxC: np.ndarray, k: int) -> np.ndarray:
  mask = np.zeros(SIZE, bool)
  mask[np.argsort(-np.abs(x_RxC).ravel(), kind='stable')[:k]] = True
  return mask.reshape(x_RxC.shape)


@pytest.mark.parametrize('kind', ['float32', 'bfloat16', 'zero'])
def test_the_largest_are_those_of_a_stable_sort(kind: str):
  delta_NxRxC = stored(kind)
  x_NxRxC = np.stack([np.asarray(delta_NxRxC[i]) for i in range(N)])
  ties = SIZE - np.unique(np.abs(x_NxRxC[0])).size
  assert (ties > SIZE // 4) == (kind == 'bfloat16')
  for k in (0, 1, SIZE // 5, SIZE - 1, SIZE):
    kth_N, masks_NxRxC = answers(delta_NxRxC, k)
    for x_RxC, kth, mask_RxC in zip(x_NxRxC, kth_N, masks_NxRxC, strict=True):
      np.testing.assert_array_equal(mask_RxC, first_largest(x_RxC, k))
      assert kth == np.sort(np.abs(x_RxC).ravel())[-max(k, 1)]


def test_rows_on_several_devices_give_the_same_and_move_no_matrix():
  mesh = Mesh(np.asarray(jax.devices()[:4]), ('row',))
  delta_NxRxC = stored('bfloat16')
  split = TaskVectors(
    jax.device_put(delta_NxRxC.base_RxC, NamedSharding(mesh, PartitionSpec('row'))),
    jax.device_put(
      delta_NxRxC.experts_NxRxC, NamedSharding(mesh, PartitionSpec(None, 'row'))
    ),
  )
  program = answers.lower(split, SIZE // 5).compile()
  for got, want in zip(program(split), answers(delta_NxRxC, SIZE // 5), strict=True):
    np.testing.assert_array_equal(got, want)
  whole = (f'{ROWS},{COLS}]', f'{ROWS * COLS}]')
  gathers = [line for line in program.as_text().splitlines() if 'all-gather' in line]
  assert not [line for line in gathers if any(shape in line for shape in whole)]
