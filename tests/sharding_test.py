"""A step gives the same result on any mesh, and its devices hardly talk."""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.linalg.head import THIN, block_size
from resmerge_jax.methods.base import Context
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.pipeline.kernel_spec import KernelSpec, as_bits
from resmerge_jax.pipeline.kernels import Found, Kernel, compile_kernel, random_start
from resmerge_jax.pipeline.packed import unpack
from resmerge_jax.sharding import AXES, MIN_ROWS, mesh_for, padded
from tests.methods.groups import context

BF16 = ml_dtypes.bfloat16
N = 3
COLLECTIVE = re.compile(
  r'= (?P<type>.*?) (?P<op>all-reduce|all-gather|all-to-all|collective-permute'
  r'|collective-broadcast|reduce-scatter)(-start)?\(.*op_name="(?P<name>[^"]*)"'
)


def spec(layers: int, rows: int, cols: int, k: int = 1) -> KernelSpec:
  params = ResMerge(head_rank=k) if k else TaskArithmetic()
  return KernelSpec(params, 'ffn', layers, rows, cols, N, 'BF16', 'BF16', 'F32')


@functools.cache
def stored(layers: int, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
  """bf16 base LxRxC and experts LxNxRxC: heads well separated, many zero updates."""
  rng = np.random.default_rng([layers, rows, cols])
  base_LxRxC = (0.02 * rng.standard_normal((layers, rows, cols))).astype(BF16)
  u, v = rng.standard_normal((2, layers, N, 12, max(rows, cols)))
  low_rank = np.einsum(
    'lntr,lntc,t->lnrc', u[..., :rows], v[..., :cols], 0.6 ** np.arange(12.0)
  )
  noise = rng.standard_normal((layers, N, rows, cols))
  delta_LxNxRxC = 5e-5 * (low_rank + 0.3 * noise)
  wide = base_LxRxC.astype(np.float32)[:, None]
  return base_LxRxC, (wide + delta_LxNxRxC).astype(BF16)


def compiled(spec: KernelSpec, n_devices: int) -> Kernel:
  return compile_kernel(spec, tuple(jax.devices()[:n_devices]))


class OnHost(NamedTuple):
  """A step's result."""

  out_LxRxC: np.ndarray
  found: Found


def merged(spec: KernelSpec, n_devices: int) -> OnHost:
  kernel = compiled(spec, n_devices)
  result = jax.device_get(kernel.run(*on_devices(spec, kernel), None))
  return OnHost(result.out_LxRxC, unpack(result.found))


def on_devices(spec: KernelSpec, kernel: Kernel) -> list[Any]:
  """The step's arguments; its input is padded with zeros as the plan says."""
  layers, rows, _ = kernel.shape
  add = [(0, layers - spec.layers)], [(0, rows - spec.rows), (0, 0)]
  base, experts = stored(spec.layers, spec.rows, spec.cols)
  return [
    jax.device_put(as_bits(np.pad(base, add[0] + add[1])), kernel.base),
    jax.device_put(
      as_bits(np.pad(experts, [*add[0], (0, 0), *add[1]])), kernel.experts
    ),
    None,  # no factors
    jax.device_put(contexts(layers), kernel.layer),
    jax.device_put(random_start(0, spec.start_shape), kernel.whole),
  ]


def contexts(layers: int) -> Context:
  """Of experts that weigh the same."""
  one = context(N)
  return jax.tree.map(lambda x: np.stack([np.asarray(x)] * layers), one)


# spec, devices, the mesh they form (layer, row)
LAYERS_SPLIT = [
  (spec(4, 40, 24), 2, (2, 1)),
  (spec(4, 40, 24), 4, (4, 1)),
  (spec(4, 40, 24), 8, (4, 1)),  # rows too few for the other four devices
  (spec(3, 40, 24), 8, (2, 1)),  # three layers padded to four
  (spec(4, 300, 200, k=2), 2, (2, 1)),
]
ROWS_SPLIT = [
  (spec(1, 513, 200), 2, (1, 2)),  # 513 rows padded to 514
  (spec(1, 513, 600), 2, (1, 2)),
  (spec(1, 513, 64, k=3), 2, (1, 2)),
  (spec(2, 1025, 144, k=4), 4, (2, 2)),
  (spec(1, 513, 64, k=0), 2, (1, 2)),
]
SAMPLED = (spec(1, 2**14, 520), 2, (1, 2))  # too large to be run here
EVERY_MESH = [
  pytest.param(
    *case, id=f'{case[0].layers}x{case[0].rows}x{case[0].cols}-k{k}-on{case[1]}'
  )
  for case in LAYERS_SPLIT + ROWS_SPLIT
  for k in [case[0].head_rank]
]


@pytest.mark.parametrize(('spec', 'n_devices', 'grid'), EVERY_MESH)
def test_agrees_with_one_device(
  spec: KernelSpec, n_devices: int, grid: tuple[int, int]
):
  kernel = compiled(spec, n_devices)
  assert tuple(kernel.base.mesh.shape.values()) == grid
  layers, rows = slice(spec.layers), slice(spec.rows)
  want, got = merged(spec, 1), merged(spec, n_devices)
  base_LxRxC = stored(spec.layers, spec.rows, spec.cols)[0].astype(np.float32)

  update_LxRxC = want.out_LxRxC - base_LxRxC
  error_LxRxC = got.out_LxRxC[layers, rows] - want.out_LxRxC
  size = np.linalg.norm(update_LxRxC, axis=(1, 2))
  assert (size > 0).all()
  rounding = 2.0**-24 * np.linalg.norm(base_LxRxC, axis=(1, 2))
  assert (np.linalg.norm(error_LxRxC, axis=(1, 2)) <= 2e-5 * size + rounding).all()

  for name, value in want.found.stats.items():
    np.testing.assert_allclose(
      got.found.stats[name][layers], value, rtol=1e-4, err_msg=name
    )
  if want.found.head is not None:
    assert (want.found.head.error <= 1e-4).all()
    np.testing.assert_allclose(
      got.found.head.sigma_K[layers], want.found.head.sigma_K, rtol=1e-5
    )
    np.testing.assert_array_equal(
      got.found.head.certified[layers], want.found.head.certified
    )

  ours, theirs = got.out_LxRxC[layers, rows].astype(BF16), want.out_LxRxC.astype(BF16)
  units = np.abs(ordered(ours) - ordered(theirs))
  assert units.max() <= 1
  assert np.count_nonzero(units) < 1e-3 * units.size + 1


def ordered(array: np.ndarray) -> np.ndarray:
  """Integers in the order of the bf16 numbers: neighbours differ by one."""
  bits = array.view(np.int16).astype(np.int32)
  return np.where(bits < 0, -(bits & 0x7FFF), bits)


@pytest.mark.parametrize(('spec', 'n_devices', 'grid'), EVERY_MESH)
def test_padding_does_not_leak(spec: KernelSpec, n_devices: int, grid: tuple[int, int]):
  del grid
  got = merged(spec, n_devices)
  layers, _rows = got.out_LxRxC.shape[:2]
  assert not got.out_LxRxC[spec.layers :].any()
  assert not got.out_LxRxC[:, spec.rows :].any()

  base, experts = (
    x.astype(np.float64) for x in stored(spec.layers, spec.rows, spec.cols)
  )
  delta = experts - base[:, None]
  sums = jax.tree.map(lambda x: x[: spec.layers], got.found.sums)
  np.testing.assert_allclose(sums.delta_sq_LxN, (delta**2).sum((2, 3)), rtol=1e-5)
  np.testing.assert_array_equal(sums.changed_LxN, (delta != 0).sum((2, 3)))
  update = got.out_LxRxC[: spec.layers, : spec.rows] - base
  np.testing.assert_allclose(sums.update_sq_L, (update**2).sum((1, 2)), rtol=1e-4)

  for name, value in got.found.stats.items():
    assert np.isfinite(value).all(), name
  for sum_L in (
    got.found.sums.delta_sq_LxN,
    got.found.sums.update_sq_L,
    got.found.sums.loss_sq_L,
  ):
    assert not sum_L[spec.layers : layers].any()


@pytest.mark.parametrize(
  ('spec', 'n_devices', 'grid'), [LAYERS_SPLIT[0], ROWS_SPLIT[0]]
)
def test_a_step_moves_nothing_between_host_and_devices(
  spec: KernelSpec, n_devices: int, grid: tuple[int, int]
):
  del grid
  kernel = compiled(spec, n_devices)
  arguments = on_devices(spec, kernel)
  with jax.transfer_guard('disallow_explicit'):
    jax.block_until_ready(kernel.run(*arguments, None))
    with pytest.raises(jax.errors.JaxRuntimeError, match='Disallowed host-to-device'):
      jax.device_put(np.ones(1))  # the guard is on
  text = kernel.run.as_text()
  for trip in ('callback', 'infeed', 'outfeed', 'send', 'recv'):
    assert f'{trip}(' not in text
    assert f'custom_call_target="xla_python_{trip}' not in text


def collectives(kernel: Kernel) -> list[tuple[str, int, str]]:
  """(operation, numbers it moves, where in the program) of a compiled step."""
  found = []
  for line in kernel.run.as_text().splitlines():
    if match := COLLECTIVE.search(line):
      shapes = re.findall(r'[a-z]+[0-9]*\[([0-9,]*)\]', match['type'])
      numbers = sum(math.prod(int(n) for n in s.split(',') if n) for s in shapes)
      found.append((match['op'], numbers, match['name']))
  return found


@pytest.mark.parametrize(('spec', 'n_devices', 'grid'), LAYERS_SPLIT)
def test_layers_on_different_devices_share_only_the_end_of_the_loop(
  spec: KernelSpec, n_devices: int, grid: tuple[int, int]
):
  del grid
  for op, numbers, name in collectives(compiled(spec, n_devices)):
    assert (op, numbers) == ('all-reduce', 1), name
    assert name.endswith('while'), name


@pytest.mark.parametrize(('spec', 'n_devices', 'grid'), [*ROWS_SPLIT, SAMPLED])
def test_rows_on_different_devices_add_up_blocks_of_the_solver(
  spec: KernelSpec, n_devices: int, grid: tuple[int, int]
):
  """All-reduces of a block of C columns, or of the Gram matrix of a thin side."""
  del grid
  found = collectives(compiled(spec, n_devices))
  assert {op for op, _, _ in found} == {'all-reduce'}
  sizes = {name: numbers for _, numbers, name in found}
  in_steps = [n for name, n in sizes.items() if 'while/body/while/body' in name]
  block = block_size(spec.head_rank) * spec.cols
  if not spec.head_rank:
    assert max(sizes.values()) <= 2 * N + 2
  elif spec.cols <= THIN:
    assert not in_steps
    assert max(sizes.values()) == spec.cols**2
  else:
    # In a step, what turns the block, and the block.
    assert sorted(in_steps) == [block_size(spec.head_rank) ** 2, block]
    assert max(sizes.values()) <= block


@pytest.mark.parametrize(
  ('layers', 'rows', 'n_devices', 'grid', 'shape'),
  [
    (1, 2 * MIN_ROWS - 1, 8, (1, 1), (1, 511)),
    (1, 2 * MIN_ROWS, 8, (1, 2), (1, 512)),
    (1, 8 * MIN_ROWS, 8, (1, 8), (1, 2048)),
    (1, 3 * MIN_ROWS, 8, (1, 2), (1, 768)),
    (2, 4 * MIN_ROWS + 1, 8, (2, 4), (2, 1028)),
    (3, 4 * MIN_ROWS, 8, (2, 4), (4, 1024)),
    (3, 40, 3, (3, 1), (3, 40)),
    (9, 40, 8, (8, 1), (16, 40)),
    (5, 40, 1, (1, 1), (5, 40)),
  ],
)
def test_mesh(layers: int, rows: int, n_devices: int, grid: tuple, shape: tuple):
  mesh = mesh_for(layers, rows, jax.devices()[:n_devices])
  assert mesh.axis_names == AXES
  assert mesh.devices.shape == grid
  assert padded(layers, rows, mesh) == shape
