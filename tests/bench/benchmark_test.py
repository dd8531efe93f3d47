"""Groups on disk, sweeps and pictures, without measuring anything."""

import json

import pytest

from resmerge_jax.bench import benchmark as module
from resmerge_jax.bench import rivals
from resmerge_jax.bench.cases import benchmark
from resmerge_jax.bench.curves import curves
from resmerge_jax.bench.groups import prepare
from resmerge_jax.errors import InputError
from resmerge_jax.synthetic import make_group
from tests.bench.made_up import GB, case, result, sample


def measured(case):
  """Time and memory grow with parameters and experts."""
  size = case.model.n_parameters / 1e6 + case.n_experts
  return result(
    *(sample('floor', n, size, {'sync': 0.1}, None) for n in (1, 2)),
    *(sample('import_jax', n, 0.5) for n in (1, 2)),
    *(sample('ours_first', n, 3 + size) for n in (1, 2)),
    *(sample('ours', n, 1 + 2 * size + n, None, int(size * GB)) for n in (1, 2)),
    case=case,
  )


def test_groups_are_made_once_and_shared(tmp_path):
  said = []
  asked = [case(layers=1, n_experts=n) for n in (2, 4)]
  found = prepare(asked, tmp_path, said.append)

  assert said == [
    f'tiny: 1 layer, 4 experts: making the group in {tmp_path}/tiny-1l-512v-4e'
  ]
  two, four = (found[each] for each in asked)
  assert [p.name for p in two.experts] == ['expert_math', 'expert_code']
  assert [p.name for p in four.experts][2:] == ['expert_tool', 'expert_3']
  assert four.base == two.base
  assert 3 * four.bytes_read == 5 * two.bytes_read
  assert two.bytes_written == sum(
    path.stat().st_size for path in two.base.glob('*.safetensors')
  )
  again = prepare([case(layers=1, n_experts=3)], tmp_path, said.append)
  assert len(said) == 1
  assert len(next(iter(again.values())).experts) == 3
  assert [path.name for path in tmp_path.iterdir()] == ['tiny-1l-512v-4e']


def test_a_folder_with_other_shapes_is_refused(tmp_path):
  make_group(tmp_path / 'tiny-2l-512v-2e', 'tiny', n_experts=2, layers=1)
  with pytest.raises(InputError, match='base does not hold the shapes of tiny: 2'):
    prepare([case(layers=2, n_experts=2)], tmp_path, print)


def test_a_sweep_prints_a_table_and_draws_a_picture(tmp_path, monkeypatch):
  monkeypatch.setattr(module, 'measure', lambda *given: measured(given[1]))
  lines = list(
    module.run_benchmark(
      benchmark('tiny', rivals=['floor'], sweep='n_experts=2,3,4'),
      work_dir=tmp_path / 'work',
      output=tmp_path / 'pictures',
      json_file=tmp_path / 'raw/numbers.json',
      say=lambda _: None,
    )
  )

  picture = tmp_path / 'pictures/sweep_n_experts.png'
  assert lines[-1] == f'  {picture}'
  assert picture.read_bytes().startswith(b'\x89PNG')
  start = lines.index('sweep over n_experts')
  rows = [line.split() for line in lines[start + 2 : start + 5]]
  assert [row[:2] for row in rows] == [[n, '854,144'] for n in ('2', '3', '4')]
  assert lines[-3].startswith('  ours: 4.21 s + 2 s per expert, R2 1.0000')
  assert lines[-2].startswith('  ours: 0.854 GB + 1 GB per expert, R2 1.0000')

  raw = json.loads((tmp_path / 'raw/numbers.json').read_text())
  assert raw['sweep'] == {'key': 'n_experts', 'values': [2, 3, 4]}
  assert [c['case']['n_experts'] for c in raw['cases']] == [2, 3, 4]
  assert len(raw['cases'][0]['samples']) == 8
  assert {'cpu', 'cores', 'date', 'versions', 'memory_bytes'} <= raw['machine'].keys()


def test_curves_of_a_sweep_over_layers():
  request = benchmark('tiny', sweep='layers=1,2,4')
  assert request.sweep is not None
  found = curves(request.sweep, [measured(each) for each in request.cases])

  assert (found.title, found.x_label) == ('tiny, 3 experts', 'parameters (billions)')
  assert [c.label for c in found.time] == ['ours', 'floor']
  # The floor's memory is unknown.
  assert [c.label for c in found.memory] == ['ours', 'predicted']
  ours = found.time[0]
  assert ours.x == tuple(each.model.n_parameters / 1e9 for each in request.cases)
  assert all(high - low == 1 for low, high in zip(ours.low, ours.high, strict=True))


def test_rivals_and_why_one_is_missing(tmp_path, monkeypatch):
  request = benchmark('tiny', rivals=['floor', 'mergekit', 'full_svd'], layers=1)
  group = prepare(request.cases, tmp_path, lambda _: None)[request.cases[0]]

  found, missing = rivals.rivals(request, group, tmp_path)
  assert [rival.name for rival in found] == [
    'floor', 'import_jax', 'mergekit', 'full_svd', 'ours_first', 'ours',
  ]  # fmt: skip
  assert missing == {}
  config = json.loads((tmp_path / 'mergekit.yml').read_text())
  assert config['merge_method'] == 'task_arithmetic'
  assert [m['parameters']['weight'] for m in config['models']] == [1 / 3] * 3

  monkeypatch.setattr(rivals, 'is_installed', lambda _: False)
  found, missing = rivals.rivals(request, group, tmp_path)
  assert 'mergekit' not in [rival.name for rival in found]
  assert missing == {'mergekit': "not installed: pip install 'resmerge-jax[clients]'"}


def test_caches_are_the_benchmarks_own(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
  env = rivals.environment(tmp_path)
  assert 'JAX_COMPILATION_CACHE_DIR' not in env
  assert env['XDG_CACHE_HOME'] == str(tmp_path / 'cache')


def test_a_place_that_is_no_folder(tmp_path):
  (tmp_path / 'file').write_text('')
  lines = module.run_benchmark(
    benchmark('tiny'),
    work_dir=tmp_path / 'file',
    output=tmp_path,
    json_file=None,
    say=print,
  )
  with pytest.raises(InputError, match='file: cannot be made'):
    next(lines)
