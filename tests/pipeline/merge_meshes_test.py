"""Merges on any number of devices and any mesh agree, and no input is overwritten."""

import contextlib
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.checkpoint.reader import CheckpointReader
from resmerge_jax.config_checks import parse_mesh
from resmerge_jax.errors import InputError
from resmerge_jax.linalg import krylov, passes
from resmerge_jax.pipeline import kernels, loop, program_cache
from resmerge_jax.pipeline.staging import Staging
from resmerge_jax.plan import step_sizes
from tests import groups, several
from tests.groups import MEAN


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return several.write_group(tmp_path_factory.mktemp('group'))


@contextlib.contextmanager
def only(n_devices: int):
  """The first devices are all there are."""
  devices = jax.devices()[:n_devices]
  with pytest.MonkeyPatch.context() as patch:
    for name in ('devices', 'local_devices'):
      patch.setattr(jax, name, lambda: devices)
    yield


def merged(group, output: pathlib.Path, n_devices: int, mesh: str | None = None):
  with only(n_devices):
    manifest = groups.merge(group, output, mesh=mesh, **several.SETTINGS)
  assert manifest.content['devices'] == {'cpu': n_devices}
  return groups.load(output), groups.records(output)


@pytest.fixture(scope='module')
def on_one(group, tmp_path_factory):
  return merged(group, tmp_path_factory.mktemp('one') / 'out', 1)


@pytest.mark.parametrize(
  ('n_devices', 'mesh'),
  [(2, None), (4, 'row:4'), (8, None), (8, 'layer:3,row:2')],
)
def test_agrees_with_one_device(group, on_one, tmp_path, n_devices, mesh):
  got, records = merged(group, tmp_path / 'out', n_devices, mesh)
  want, wanted = on_one
  several.assert_agree(got, want, groups.load(group.base))
  for ours, theirs in zip(records, wanted, strict=True):
    assert ours.keys() == theirs.keys()
    for key in ('delta_norm', 'update_norm', 'sigma'):
      if key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4)
    assert ours.get('float64_head') == theirs.get('float64_head')
    assert any(ours.get('float64_head', [])) == (ours['name'] == several.CLOSE)


@pytest.fixture
def _all_count_as_large(monkeypatch):
  """Programs as for the matrices of large models: sampled starts, blocks of rows."""
  monkeypatch.setattr(krylov, 'LARGE', 0)
  monkeypatch.setattr(passes, 'MANY_ENTRIES', 0)
  monkeypatch.setattr(passes, 'BLOCK_BYTES', 2**14)
  monkeypatch.setattr(program_cache, '_folders', [])  # programs of others are no use
  kernels.compile_kernel.cache_clear()
  yield
  kernels.compile_kernel.cache_clear()


@pytest.mark.usefixtures('_all_count_as_large')
@pytest.mark.parametrize(('n_devices', 'mesh'), [(1, None), (6, 'layer:3,row:2')])
def test_large_matrices_agree(group, on_one, tmp_path, n_devices, mesh):
  """In blocks on one device; where two share rows, formed."""
  got, records = merged(group, tmp_path / 'out', n_devices, mesh)
  several.assert_agree(got, on_one[0], groups.load(group.base))
  flagged = [r['name'] for r in records if any(r.get('float64_head', []))]
  assert flagged == [several.CLOSE]


def test_steps_that_wait_for_the_buffer_of_others(group, on_one, tmp_path, monkeypatch):
  """As those of large matrices do: the same bytes, each expected before it is read."""
  monkeypatch.setattr(step_sizes, 'ALONE_BYTES', 0)
  expected, read = set(), set()
  expect, read_into = CheckpointReader.expect, CheckpointReader.read_into

  def expecting(self, ref, row_start, row_stop):
    expected.add((id(self), ref.name, row_start, row_stop))
    expect(self, ref, row_start, row_stop)

  def reading(self, ref, row_start, row_stop, out):
    read.add((id(self), ref.name, row_start, row_stop))
    assert (id(self), ref.name, row_start, row_stop) in expected
    read_into(self, ref, row_start, row_stop, out)

  monkeypatch.setattr(CheckpointReader, 'expect', expecting)
  monkeypatch.setattr(CheckpointReader, 'read_into', reading)
  got, _ = merged(group, tmp_path / 'out', 1)
  assert expected == read
  groups.assert_same_bits(got, on_one[0])


def test_state_dicts_agree_with_one_device(group):
  wanted = ('up_proj', 'position_ids')

  def part(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {n: x for n, x in groups.load(folder).items() if any(w in n for w in wanted)}

  base, *experts = (part(path) for path in (group.base, *group.experts))
  found = []
  for n_devices in (1, 8):
    with only(n_devices):
      found.append(resmerge_jax.merge_state_dicts(base, experts).tensors)
  assert len(base) == 2 * several.LAYERS + 1
  several.assert_agree(*found, base)


@pytest.mark.parametrize(
  ('text', 'mesh'),
  [
    ('layer:4,row:2', (4, 2)),
    ('row:2, layer:4', (4, 2)),
    ('row:8', (1, 8)),
    ([2, 3], (2, 3)),
  ],
)
def test_mesh(text, mesh):
  assert parse_mesh(text) == mesh


@pytest.mark.parametrize(
  'text',
  [
    '',
    'layer',
    'layer:',
    'column:2',
    'row:-1',
    'row:0',
    (1, 2, 3),
    (2, 0),
    'ab',
    5,
    'row:2,row:4',
  ],
)
def test_no_mesh(text):
  with pytest.raises(InputError) as caught:
    parse_mesh(text)
  assert str(caught.value).splitlines() == [
    f'mesh: got {text!r}, expected axes layer and row with numbers of devices',
    'What to do: write layer:4,row:2, or layer:8',
  ]


def test_a_mesh_of_more_devices_than_there_are(group, tmp_path):
  with pytest.raises(InputError) as caught:
    groups.merge(group, tmp_path / 'work' / 'out', mesh='layer:3,row:3')
  assert str(caught.value).splitlines() == [
    'mesh: got layer:3,row:3, which needs 9 devices; there are 8',
    'What to do: choose a smaller mesh, or leave it out: it is then chosen for each step',
  ]
  assert not (tmp_path / 'work').exists()


@pytest.fixture
def late_programs(monkeypatch):
  """Programs that begin only long after they were asked for."""

  @jax.jit
  def late(weights_LxN):
    x = jax.lax.fori_loop(0, 300, lambda _, x: jnp.sin(x) + 1, jnp.zeros(20_000))
    return weights_LxN + 0 * x[0]

  dispatch = loop._dispatch

  def dispatched(kernel, *args):
    run = kernel.run

    def run_late(base, experts, factors, context, *rest):
      weights_LxN = jax.device_put(late(context.weights_N), kernel.layer)
      context = dataclasses.replace(context, weights_N=weights_LxN)
      return run(base, experts, factors, context, *rest)

    return dispatch(dataclasses.replace(kernel, run=run_late), *args)

  monkeypatch.setattr(loop, '_dispatch', dispatched)


def spoil(buffer: np.ndarray) -> None:
  """What the next read into a buffer would do; as bfloat16 NaN."""
  buffer[:] = 0xFF


@pytest.mark.usefixtures('late_programs')
def test_a_buffer_is_refilled_only_after_all_that_read_it(group, tmp_path, monkeypatch):
  give_back, given = Staging.give_back, []

  def spoiling(self, buffer):
    spoil(buffer)
    given.append(buffer)
    give_back(self, buffer)

  monkeypatch.setattr(Staging, 'give_back', spoiling)
  with only(1):
    groups.merge(group, tmp_path / 'out', method=MEAN, **several.SETTINGS)
  assert len(given) > 5
  want = several.mean(group)
  groups.assert_same_bits(groups.load(tmp_path / 'out'), want)


@pytest.mark.usefixtures('late_programs')
def test_a_buffer_that_is_refilled_too_early_is_noticed(group, tmp_path, monkeypatch):
  """The test above can fail: devices do read the buffer itself, and late."""
  stored, dispatch, buffers = loop._stored, loop._dispatch, []

  def remembered(kernel, spec, inputs):
    buffers.append(inputs.buffer)
    return stored(kernel, spec, inputs)

  def too_early(*args):
    result = dispatch(*args)
    spoil(buffers[-1])
    return result

  monkeypatch.setattr(loop, '_stored', remembered)
  monkeypatch.setattr(loop, '_dispatch', too_early)
  with only(1), pytest.raises(InputError, match='NaN or Inf in the weights'):
    groups.merge(group, tmp_path / 'out', method=MEAN, **several.SETTINGS)
