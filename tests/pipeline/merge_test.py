"""Whole merges of small folders: bytes, layout, side files, manifest, records, card."""

import json
import os

import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.config import config_from, to_plain
from resmerge_jax.errors import InputError
from resmerge_jax.pipeline.prepare import prepare
from resmerge_jax.plan.step_sizes import PROCESS_BYTES
from resmerge_jax.types import CODES
from tests import groups
from tests.groups import MEAN

EMBEDDING = 'model.embed_tokens.weight'
MATRIX = 'model.layers.1.mlp.up_proj.weight'


@pytest.fixture(scope='module')
def group(tmp_path_factory) -> groups.Group:
  return groups.small(tmp_path_factory.mktemp('group') / 'g')


@pytest.fixture(scope='module')
def merged(group, tmp_path_factory):
  """The merge that most tests look at: all defaults."""
  return groups.merge(group, tmp_path_factory.mktemp('merged') / 'out')


@pytest.fixture(scope='module')
def in_memory(group) -> resmerge_jax.MergeResult:
  experts = {path.name: groups.load(path) for path in group.experts}
  return resmerge_jax.merge_state_dicts(groups.load(group.base), experts)


def test_folders_and_state_dicts_give_the_same_bits_and_records(
  merged, in_memory, group
):
  got = groups.load(merged.output)
  groups.assert_same_bits(got, in_memory.tensors)
  assert groups.records(merged.output) == in_memory.records
  base = groups.load(group.base)
  for name in (EMBEDDING, MATRIX, 'model.norm.weight'):
    assert not np.array_equal(got[name], base[name]), name


def test_shard_layout_of_the_base_is_kept(merged, group):
  files = {path.name for path in group.base.glob('*.safetensors*')}
  assert len(files) > 2
  assert {path.name for path in merged.output.glob('*.safetensors*')} == files
  index, base_index = (
    json.loads((folder / 'model.safetensors.index.json').read_text())
    for folder in (merged.output, group.base)
  )
  assert index['weight_map'] == base_index['weight_map']
  assert index['metadata']['total_size'] == base_index['metadata']['total_size']


def test_side_files_are_the_bases_byte_for_byte(merged, group):
  copied = {
    path.name
    for path in group.base.iterdir()
    if not path.name.endswith(('.safetensors', '.index.json'))
  } - {'config.json'}
  assert copied == {
    'generation_config.json',
    'special_tokens_map.json',
    'tokenizer.json',
    'tokenizer_config.json',
  }
  for name in copied:
    assert (merged.output / name).read_bytes() == (group.base / name).read_bytes()
  added = {'README.md', 'config.json', 'manifest.json', 'records.jsonl'}
  weights = groups.weight_bytes(merged.output).keys()
  assert set(os.listdir(merged.output)) == copied | added | weights
  assert groups.config(merged.output) == groups.config(group.base)


def test_chat_template_file_is_copied(group, tmp_path):
  base = tmp_path / 'base'
  base.mkdir()
  for path in group.base.iterdir():
    (base / path.name).symlink_to(path)
  (base / 'chat_template.jinja').write_text('{{ messages }}\n')
  output = groups.merge(group._replace(base=base), tmp_path / 'out', method=MEAN).output
  assert (output / 'chat_template.jinja').read_text() == '{{ messages }}\n'
  assert not any(path.is_symlink() for path in output.iterdir())


@pytest.mark.parametrize('limit', ['90kB', 10**9])
def test_max_shard_size(group, tmp_path, limit):
  output = groups.merge(
    group, tmp_path / 'out', method=MEAN, max_shard_size=limit
  ).output
  files = sorted(path.name for path in output.glob('*.safetensors*'))
  want = resmerge_jax.merge_state_dicts(
    groups.load(group.base), [groups.load(e) for e in group.experts], 'task_arithmetic'
  )
  groups.assert_same_bits(groups.load(output), want.tensors)
  if limit == 10**9:
    assert files == ['model.safetensors']
    return
  index = json.loads((output / 'model.safetensors.index.json').read_text())
  assert sorted({*index['weight_map'].values(), 'model.safetensors.index.json'}) == (
    files
  )
  for file in set(index['weight_map'].values()):
    held = [n for n, holder in index['weight_map'].items() if holder == file]
    size = sum(want.tensors[name].nbytes for name in held)
    assert size <= 90_000 or held == [EMBEDDING], file


@pytest.mark.parametrize('dtype', ['base', 'bfloat16', 'float16', 'float32'])
def test_output_dtype_and_config(group, tmp_path, dtype):
  manifest = groups.merge(group, tmp_path / 'out', method=MEAN, output_dtype=dtype)
  code = {'base': 'BF16', 'bfloat16': 'BF16', 'float16': 'F16', 'float32': 'F32'}[dtype]
  got = groups.load(manifest.output)
  assert {CODES[value.dtype] for value in got.values()} == {code}
  stated = 'bfloat16' if dtype == 'base' else dtype
  assert groups.config(manifest.output)['torch_dtype'] == stated
  note = f'config.json: torch_dtype bfloat16 -> {stated}'
  assert (note in manifest.warnings) == (stated != 'bfloat16')
  want = resmerge_jax.merge_state_dicts(
    groups.load(group.base),
    [groups.load(expert) for expert in group.experts],
    'task_arithmetic',
    output_dtype='float32',
  )
  rounded = {
    name: value.astype(got[name].dtype) for name, value in want.tensors.items()
  }
  groups.assert_same_bits(got, rounded)


def test_manifest(merged, group):
  content = json.loads((merged.output / 'manifest.json').read_text())
  assert content == json.loads(json.dumps(merged.content))
  assert merged.warnings == ()
  assert content['warnings'] == []
  assert set(content['versions']) == {
    'resmerge_jax', 'jax', 'jaxlib', 'numpy', 'ml_dtypes',
  }  # fmt: skip
  assert content['versions']['numpy'] == np.__version__
  assert content['resmerge_jax'] == resmerge_jax.__version__
  config = config_from(content['config'])
  assert json.loads(json.dumps(to_plain(config))) == content['config']
  assert config.method == resmerge_jax.ResMerge()
  roles = [(entry['role'], entry['id']) for entry in content['inputs']]
  assert roles == [
    ('base', 'base'),
    *(('expert', f'expert_{task}') for task in ('math', 'code', 'tool')),
  ]
  assert all(len(entry['header_sha256']) == 64 for entry in content['inputs'])
  n_bytes = sum(value.nbytes for value in groups.load(group.base).values())
  assert content['bytes_read'] == 4 * n_bytes
  written = sum(map(len, groups.weight_bytes(merged.output).values()))
  assert content['bytes_written'] == written
  sizes = {p.name: p.stat().st_size for p in merged.output.glob('*.safetensors')}
  files = {name: entry['bytes'] for name, entry in content['files'].items()}
  assert files.items() >= sizes.items()
  seconds = content['seconds']
  assert set(seconds) == {
    'read_wait',
    'compile_wait',
    'compute_wait',
    'finish_wait',
    'until_commit',
  }
  assert 0 <= max(seconds.values()) == seconds['until_commit']
  assert content['peak_memory_bytes'] > 100 * 2**20
  assert len(content['plan_fingerprint']) == 64
  assert content['devices'] == {'cpu': 8}
  assert sum(rule['tensors'] for rule in content['rules']) == len(
    groups.load(group.base)
  )


COMMON = {'name', 'rule', 'family', 'shape'}
COMPUTED = {'delta_norm', 'zero_fraction', 'update_norm', 'rounding_loss'}
HEAD = {'sigma', 'sigma_next', 'gap', 'head_error_estimate', 'certified'}
SCALARS = {'s_R', 'c_R', 'beta', 'alpha_R', 'n_R', 'S_H', 'branch'}


def test_records(merged, group):
  records = groups.records(merged.output)
  base, out = groups.load(group.base), groups.load(merged.output)
  shards = json.loads((group.base / 'model.safetensors.index.json').read_text())
  files = [shards['weight_map'][record['name']] for record in records]
  assert files == sorted(files)
  assert [r['name'] for r in records if r['rule'] == 'method'] == [
    name for name in (r['name'] for r in records) if 'proj.weight' in name
  ]
  assert {record['name'] for record in records} == set(base)
  experts = [groups.load(expert) for expert in group.experts]
  for record in records:
    name = record['name']
    wanted = COMMON | COMPUTED
    wanted |= (HEAD | SCALARS) if record['rule'] == 'method' else set()
    assert wanted <= record.keys(), name
    assert record['shape'] == list(base[name].shape)
    start = base[name].astype(np.float64)
    deltas = [expert[name].astype(np.float64) - start for expert in experts]
    norms = [np.linalg.norm(delta) for delta in deltas]
    np.testing.assert_allclose(record['delta_norm'], norms, rtol=1e-5, err_msg=name)
    zeros = [np.mean(delta == 0) for delta in deltas]
    np.testing.assert_allclose(record['zero_fraction'], zeros, atol=1e-12)
    # out = round(W0 + U), so ||out - W0|| is ||U|| up to what rounding lost.
    moved = np.linalg.norm(out[name].astype(np.float64) - start)
    loss = record['rounding_loss'] * record['update_norm']
    assert abs(moved - record['update_norm']) <= loss * (1 + 1e-5) + 1e-12, name
    if record['rule'] == 'method':
      sigma = [np.linalg.svd(delta, compute_uv=False)[:2] for delta in deltas]
      np.testing.assert_allclose(
        np.ravel(record['sigma']), [s[0] for s in sigma], rtol=1e-4, err_msg=name
      )
      assert record['branch'] == 'consensus'


def test_card(merged):
  card = (merged.output / 'README.md').read_text()
  assert card.startswith('---\nbase_model:\n- "base"\n- "expert_math"')
  assert '> A merge combines parameters, not intentions. This model may inherit' in card
  assert 'wrong behaviour from any of its experts' in card
  assert 'before using it.' in card
  assert '| `method (matrix)` | `14` |' in card
  assert '## Warnings of the run\n\nNone.' in card
  for entry in merged.content['inputs']:
    assert f'`{entry["id"]}` | `{entry["header_sha256"]}`' in card
  assert json.dumps(merged.content['config'], indent=2) in card


def test_a_budget_below_the_largest_matrix_is_refused(group, tmp_path):
  with pytest.raises(InputError) as caught:
    groups.merge(group, tmp_path / 'out', memory_budget='1MiB')
  needed = int(str(caught.value).rsplit('--memory_budget=', 1)[1].split()[0])
  assert f'got 1 MiB, the largest matrix needs 181 MiB ({needed} bytes)' in str(
    caught.value
  )
  assert PROCESS_BYTES < needed < PROCESS_BYTES + 2**20
  with pytest.raises(InputError, match=f'memory_budget={needed} or more'):
    groups.merge(group, tmp_path / 'out', memory_budget=needed - 1)
  assert not list(tmp_path.iterdir())


def test_the_smallest_budget_changes_no_byte(group, merged, tmp_path):
  with pytest.raises(InputError) as caught:
    groups.merge(group, tmp_path / 'out', memory_budget=1)
  needed = int(str(caught.value).rsplit('--memory_budget=', 1)[1].split()[0])
  config = groups.config_of(group, tmp_path / 'out', memory_budget=needed)
  steps = prepare(config).plan.steps
  assert {len(s.names) for s in steps if s.stack.action == 'method'} == {1}
  assert sum(step.names == (EMBEDDING,) for step in steps) > 1
  small = resmerge_jax.merge(config)
  assert small.content['plan_fingerprint'] != merged.content['plan_fingerprint']
  assert groups.weight_bytes(small.output) == groups.weight_bytes(merged.output)
  for record, same in zip(
    groups.records(small.output), groups.records(merged.output), strict=True
  ):
    assert record.keys() == same.keys()
    np.testing.assert_allclose(
      record['update_norm'], same['update_norm'], rtol=1e-5, err_msg=record['name']
    )


def test_the_seed_matters_only_to_rounding(group, merged, tmp_path):
  other = groups.merge(group, tmp_path / 'out', seed=7)
  got, want = groups.load(other.output), groups.load(merged.output)
  for name, value in got.items():
    groups.assert_within_a_unit(value, want[name], share=0.01, name=name)
  sigmas = [
    [record['sigma'] for record in groups.records(folder) if 'sigma' in record]
    for folder in (other.output, merged.output)
  ]
  assert sigmas[0] != sigmas[1]  # the seed did reach the solver
  np.testing.assert_allclose(*sigmas, rtol=1e-4)


def test_overwrite(group, merged, tmp_path):
  output = tmp_path / 'out'
  output.mkdir()
  (output / 'notes.txt').write_text('mine')
  with pytest.raises(InputError, match='is not empty') as caught:
    groups.merge(group, output)
  assert 'pass --overwrite to replace all of it' in str(caught.value)
  assert os.listdir(output) == ['notes.txt']
  for _ in range(2):
    groups.merge(group, output, overwrite=True)
    assert set(os.listdir(output)) == set(os.listdir(merged.output))
    assert groups.weight_bytes(output) == groups.weight_bytes(merged.output)
  assert os.listdir(tmp_path) == ['out']
