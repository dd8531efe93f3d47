"""Scans: what they find goes into the merge, the manifest, and a run that goes on."""

import json

import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.errors import StoppedError
from resmerge_jax.methods.layerwise import Lines
from resmerge_jax.methods.ram import Ram
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.methods.ties import Ties
from resmerge_jax.pipeline import scan
from resmerge_jax.writers.folder import FolderWriter
from resmerge_jax.writers.partial import partial_path, scans_path
from resmerge_jax.writers.scans import SavedScans, from_plain, to_plain
from tests import groups, several

METHODS = {'ram': Ram(), 'ties': Ties()}


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return several.write_group(tmp_path_factory.mktemp('group'))


@pytest.fixture(scope='module', params=METHODS)
def done(group, tmp_path_factory, request):
  """The method, its output and manifest."""
  output = tmp_path_factory.mktemp(request.param) / 'out'
  method = METHODS[request.param]
  return method, output, groups.merge(group, output, method=method, **several.SETTINGS)


def test_the_manifest_holds_what_was_found(group, done):
  method, output, manifest = done
  scans = manifest.content['scans']
  assert list(scans) == [f'scan {i} of {method!r}' for i in range(len(scans))]
  assert len(scans) == (1 if isinstance(method, Ram) else 3)
  assert not scans_path(output).exists()
  if isinstance(method, Ram):
    found = from_plain(scans[f'scan 0 of {method!r}'])['']['scale_N']
    np.testing.assert_array_equal(found, scale_of(group, method))


def scale_of(group, method: Ram) -> np.ndarray:
  """lambda_i by the equations, from all floating tensors."""
  base, *experts = (groups.load(path) for path in (group.base, *group.experts))
  changed = {
    name: [
      np.abs(e[name].astype(np.float32) - w.astype(np.float32))
      > np.float32(method.threshold)
      for e in experts
    ]
    for name, w in base.items()
    if w.dtype.kind != 'i'
  }
  shared = sum(
    np.array([(m & (sum(c) > 1)).sum() for m in c]) for c in changed.values()
  )
  own = sum(np.array([m.sum() for m in c]) for c in changed.values()) - shared
  ratio = np.minimum(shared / own, 1)
  return (1 + (method.rescale - 1) * ratio).astype(np.float32)


def test_a_run_that_goes_on_does_not_scan_again(group, done, tmp_path, monkeypatch):
  method, whole, _ = done
  output, written = tmp_path / 'out', []
  write = FolderWriter.write

  def failing(self, name, offset_bytes, data):
    if len(written) > 6:
      raise StoppedError('the disk is full')
    written.append(name)
    write(self, name, offset_bytes, data)

  settings = {'method': method, **several.SETTINGS}
  monkeypatch.setattr('resmerge_jax.writers.journal.EVERY_S', 0)
  with monkeypatch.context() as patch:
    patch.setattr(FolderWriter, 'write', failing)
    with pytest.raises(StoppedError):
      groups.merge(group, output, **settings)
  assert len(json.loads(scans_path(output).read_text())) == len(method_scans(method))
  monkeypatch.setattr(scan, '_measure', None)  # would fail
  groups.merge(group, output, resume=True, **settings)
  groups.assert_same_bits(groups.load(output), groups.load(whole))
  assert not partial_path(output).exists()


@pytest.mark.parametrize(
  'method', [TaskArithmetic(reduce='sum'), Ties(scale=0.5), ResMerge()], ids=str
)
def test_lines_finds_alpha_of_several_tasks(group, tmp_path, method):
  """||sum_i D_i||_1 / (N ||U||_1) over the whole model, U as without LiNeS."""
  settings = {'method': method, **several.SETTINGS, 'output_dtype': 'float32'}
  plain = groups.merge(group, tmp_path / 'plain', **settings).output
  post = (('lines', {'beta': 0.5}),)
  manifest = groups.merge(group, tmp_path / 'lines', post=post, **settings)
  base, *experts = (floats(path) for path in (group.base, *group.experts))
  merged, scaled = floats(plain), floats(manifest.output)
  summed, update = (
    sum(np.abs(f(name)).sum() for name in base)
    for f in (
      lambda name: sum(e[name] - base[name] for e in experts),
      lambda name: merged[name] - base[name],
    )
  )
  alpha = summed / len(experts) / update
  if method == TaskArithmetic(reduce='sum'):
    assert alpha == pytest.approx(1 / len(experts), rel=1e-5)
  found = from_plain(manifest.content['scans'][f'scan 0 of {Lines(beta=0.5)!r}'])['']
  # Sums of float32 absolute values, and an update that the output's rounding blurs.
  np.testing.assert_allclose(found['lines_alpha'], alpha, rtol=1e-4)
  name = 'model.embed_tokens.weight'  # outside the layers: alpha U, rounded once more
  want = base[name] + float(found['lines_alpha']) * (merged[name] - base[name])
  np.testing.assert_allclose(scaled[name], want, rtol=1e-6, atol=1e-8)


def floats(path) -> dict[str, np.ndarray]:
  return {k: np.float64(x) for k, x in groups.load(path).items() if x.dtype.kind != 'i'}


def method_scans(method) -> tuple:
  return resmerge_jax.methods.table.method_of(method).scans(method)


def test_numbers_come_back_exactly():
  rng = np.random.default_rng(0)
  found = {
    '': {'a': rng.standard_normal((2, 3)).astype(np.float32), 'n': np.arange(4)},
    'x': {'b': np.float64(rng.standard_normal(5)), 'c': np.array(3, np.int32)},
  }
  back = from_plain(json.loads(json.dumps(to_plain(found))))
  for name, arrays in found.items():
    for key, array in arrays.items():
      assert back[name][key].dtype == array.dtype
      np.testing.assert_array_equal(back[name][key], array)


def test_only_the_first_process_writes(tmp_path):
  output = tmp_path / 'out'
  partial_path(output).mkdir()
  SavedScans(output, writes=False)['one'] = {'': {'x': np.ones(2)}}
  assert not scans_path(output).exists()
  SavedScans(output, writes=True)['one'] = {'': {'x': np.ones(2)}}
  assert SavedScans(output, writes=False)['one']['']['x'].tolist() == [1, 1]
