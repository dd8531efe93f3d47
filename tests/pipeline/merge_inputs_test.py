"""Whole merges of unusual folders: dtypes, shapes, rules, twins, golden."""

import json

import ml_dtypes
import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.config import config_from, to_plain
from resmerge_jax.errors import InputError
from tests import folders, golden_cases, groups
from tests.golden_cases import BF16
from tests.groups import MEAN
from tests.oracles.task_arithmetic import task_arithmetic

GOLDEN = ('general_n3', 'bf16_n3', 'mixed_dtype_n2', 'nonfloat_n2', 'names_n2')


def experts_of(base, n=2, step=0.25):
  """Experts whose weights are the base's plus multiples of `step`: exact in bf16."""
  rng = np.random.default_rng(1)

  def update(value):
    if value.dtype.kind in 'iub':
      return value.copy()
    grid = rng.integers(-8, 9, value.shape) * step
    return np.asarray(value.astype(np.float64) + grid, value.dtype)

  return [{name: update(value) for name, value in base.items()} for _ in range(n)]


def mean_of(base, experts, name, dtype):
  start = golden_cases.to_float64(base[name])
  deltas = [golden_cases.to_float64(expert[name]) - start for expert in experts]
  return (start + task_arithmetic(deltas)).astype(np.float32).astype(dtype)


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_groups_as_folders(tmp_path, name):
  case = golden_cases.case(name)
  group = groups.write(tmp_path, case.base, case.experts)
  (output,) = (
    o
    for o in golden_cases.outputs(case, ['resmerge'])
    if o.variant == 'paper' and o.hyper['k'] == 1
  )
  merged = groups.merge(group, tmp_path / 'out', output_dtype='base')
  got = groups.load(merged.output)
  golden_cases.assert_close_to_golden(got, case, output)
  for record in groups.records(merged.output):
    rule = case.tensors[record['name']]['rule']
    assert record['rule'] == {
      'resmerge': 'method', 'ta': 'task_arithmetic', 'copy_base': 'base',
    }[rule]  # fmt: skip
  if name != 'general_n3':
    return
  for output in golden_cases.outputs(case, ['ta']):
    method = resmerge_jax.TaskArithmetic(reduce=output.variant)
    merged = groups.merge(
      group, tmp_path / output.variant, method=method, output_dtype='base'
    )
    golden_cases.assert_close_to_golden(groups.load(merged.output), case, output)


def test_dtypes_may_be_mixed_and_integers_are_copied(tmp_path):
  rng = np.random.default_rng(0)

  def draw(dtype, *shape):
    return (rng.integers(-64, 65, shape) / 16).astype(dtype)

  base = {
    'half.weight': draw(np.float16, 6, 4),
    'double.weight': draw(np.float64, 6, 4),
    'single.weight': draw(np.float32, 6, 4),
    'brain.weight': draw(BF16, 6, 4),
    'steps': np.arange(5),
    'mask': np.array([[True, False]]),
    'empty.weight': np.zeros((0, 4), np.float32),
    'empty.rows': np.zeros((3, 0), np.float32),
  }
  experts = experts_of(base)
  experts[0]['brain.weight'] = experts[0]['brain.weight'].astype(np.float32)
  experts[1]['half.weight'] = experts[1]['half.weight'].astype(BF16)
  experts[1]['steps'] = np.arange(5) + 7
  group = groups.write(tmp_path, base, experts)
  for dtype in ('base', 'float32'):
    merged = groups.merge(
      group, tmp_path / f'out_{dtype}', method=MEAN, output_dtype=dtype
    )
    want = {
      name: mean_of(
        base, experts, name, value.dtype if dtype == 'base' else np.dtype(np.float32)
      )
      if value.dtype.kind not in 'iub'
      else value
      for name, value in base.items()
    }
    groups.assert_same_bits(groups.load(merged.output), want)
    by_name = {r['name']: r for r in groups.records(merged.output)}
    assert by_name['steps'] == {
      'name': 'steps',
      'rule': 'base',
      'family': 'other',
      'shape': [5],
    }
    assert by_name['empty.rows']['shape'] == [3, 0]


def test_other_ranks_follow_task_arithmetic_with_a_warning(tmp_path):
  rng = np.random.default_rng(0)
  base = {
    'model.scale': np.asarray(rng.integers(0, 8), np.float32),
    'model.conv.weight': rng.integers(-8, 8, (3, 2, 4)).astype(np.float32),
    'model.layers.0.mlp.up_proj.weight': np.zeros((4, 4), np.float32),
  }
  experts = experts_of(base)
  merged = groups.merge(
    groups.write(tmp_path, base, experts), tmp_path / 'out', output_dtype='base'
  )
  (warning,) = (text for text in merged.warnings if 'matrices' in text)
  assert warning == (
    'tensors that are neither vectors nor matrices follow task arithmetic (the '
    'released script refuses them): model.conv.weight, model.scale'
  )
  assert warning in (merged.output / 'README.md').read_text()
  got = groups.load(merged.output)
  rules = {r['name']: r['rule'] for r in groups.records(merged.output)}
  for name in ('model.scale', 'model.conv.weight'):
    assert rules[name] == 'task_arithmetic'
    np.testing.assert_array_equal(got[name], mean_of(base, experts, name, np.float32))
    assert got[name].shape == base[name].shape
  assert rules['model.layers.0.mlp.up_proj.weight'] == 'method'


def test_rules_of_the_config(tmp_path):
  base = folders.tensors()
  experts = [folders.tensors(seed) for seed in (1, 2)]
  group = groups.write(tmp_path, base, experts)
  config = config_from(
    {
      'base': str(group.base),
      'experts': [str(path) for path in group.experts],
      'output': str(tmp_path / 'out'),
      'method': {'name': 'task_arithmetic', 'reduce': 'sum', 'scale': 0.5},
      'outside': {'reduce': 'mean'},
      'rules': [
        {'match': 'embed', 'action': 'base', 'why': 'tokens stay'},
        {'match': r'layers\.1\.', 'action': 'method', 'ndim': [2]},
        {'match': '', 'action': 'task_arithmetic'},
      ],
      'output_dtype': 'float32',
    }
  )
  merged = resmerge_jax.merge(config)
  got = groups.load(merged.output)
  for name, value in base.items():
    start = value.astype(np.float64)
    mean = sum(e[name].astype(np.float64) - start for e in experts) / 2
    if 'embed' in name:
      mean, rule = 0 * mean, 'base'
    elif 'layers.1.' in name and value.ndim == 2:
      rule = 'method'  # half the sum of two is their mean; told apart by the record
    else:
      rule = 'task_arithmetic'
    np.testing.assert_allclose(got[name], start + mean, rtol=1e-6, err_msg=name)
    (record,) = (r for r in groups.records(merged.output) if r['name'] == name)
    assert record['rule'] == rule, name
  assert [(r['why'], r['tensors']) for r in merged.content['rules']] == [
    ('tokens stay', 1),
    ('given in the config', 2),
    ('given in the config', 5),
  ]
  assert '`base (tokens stay)` | `1`' in (merged.output / 'README.md').read_text()
  read_back = config_from(json.loads(json.dumps(to_plain(config))))
  assert read_back.rules == config.rules


def test_twins_are_warned_about(tmp_path):
  base, expert = folders.tensors(), folders.tensors(1)
  expert['model.norm.weight'] = base['model.norm.weight']  # one equal tensor is no twin
  group = groups.write(tmp_path, base, [expert, base, expert], torch_dtype='bfloat16')
  merged = groups.merge(group, tmp_path / 'out', method=MEAN)
  assert merged.warnings == (
    "expert 'e1' is identical to the base: it brings no update",
    "experts 'e0' and 'e2' are identical: one update counts twice",
  )
  assert merged.content['warnings'] == list(merged.warnings)
  card = (merged.output / 'README.md').read_text()
  for warning in merged.warnings:
    assert f'- {warning}' in card


def test_twins_in_other_dtypes_are_found(tmp_path):
  expert = folders.tensors(1)
  wide = {name: value.astype(np.float32) for name, value in expert.items()}
  group = groups.write(
    tmp_path, folders.tensors(), [expert, wide], torch_dtype='bfloat16'
  )
  merged = groups.merge(group, tmp_path / 'out', method=MEAN)
  assert merged.warnings == (
    "experts 'e0' and 'e1' are identical: one update counts twice",
  )


@pytest.mark.parametrize('bad', [np.nan, -np.inf])
@pytest.mark.parametrize('who', ['base', 'e0', 'e1'])
def test_numbers_that_are_not_finite(tmp_path, bad, who):
  weights = {'base': folders.tensors(), 'e0': folders.tensors(1)}
  weights['e1'] = folders.tensors(2)
  name = 'model.layers.1.mlp.up_proj.weight'
  weights[who][name][7, 3] = bad
  group = groups.write(tmp_path, weights['base'], [weights['e0'], weights['e1']])
  with pytest.raises(InputError) as caught:
    groups.merge(group, tmp_path / 'out', method=MEAN)
  role = 'base' if who == 'base' else 'expert'
  assert str(caught.value).startswith(
    f"NaN or Inf in the weights\n  - {role} '{who}': {name}\nWhy it matters: "
  )
  assert sorted(path.name for path in tmp_path.iterdir()) == ['base', 'e0', 'e1']


def test_a_copied_tensor_with_nan_is_refused_too(tmp_path):
  base = folders.tensors()
  base['model.norm.weight'][0] = np.nan
  rules = (
    resmerge_jax.Rule('norm', 'base', 'kept'),
    resmerge_jax.Rule('', 'task_arithmetic', 'rest'),
  )
  group = groups.write(tmp_path, base, [folders.tensors(1)])
  with pytest.raises(InputError, match=r"base 'base': model\.norm\.weight"):
    groups.merge(group, tmp_path / 'out', rules=rules)
  assert not (tmp_path / 'out').exists()


def test_float16_overflow(tmp_path):
  base = {'a.weight': np.full((4, 4), 6e4, ml_dtypes.bfloat16)}
  expert = {'a.weight': np.full((4, 4), 7e4, ml_dtypes.bfloat16)}
  group = groups.write(tmp_path, base, [expert])
  with pytest.raises(InputError) as caught:
    groups.merge(group, tmp_path / 'out', method=MEAN, output_dtype='float16')
  assert str(caught.value) == (
    'merged values exceed the range of F16\n  - a.weight\n'
    'What to do: pass --output_dtype=bfloat16 or float32; nothing was written'
  )
  assert not (tmp_path / 'out').exists()


def test_float16_overflow_of_a_copied_tensor(tmp_path):
  base = {'a.weight': np.full((4, 4), 7e4, ml_dtypes.bfloat16)}
  group = groups.write(tmp_path, base, [base])
  with pytest.raises(InputError, match=r'exceed the range of F16\n  - a\.weight\n'):
    groups.merge(
      group,
      tmp_path / 'out',
      rules=(resmerge_jax.Rule('', 'base', 'all'),),
      output_dtype='float16',
    )
  assert not (tmp_path / 'out').exists()


def test_unaligned_files_and_missing_tokenizers_are_legal(tmp_path):
  base, expert = folders.tensors(), folders.tensors(1)
  group = groups.write(tmp_path, base, [expert], files={})
  for folder in (group.base, *group.experts):
    shift_data(folder / 'model.safetensors')
  merged = groups.merge(group, tmp_path / 'out', method=MEAN, output_dtype='base')
  groups.assert_same_bits(groups.load(merged.output), expert)
  assert f'base {group.base}: no tokenizer files' in merged.warnings


def shift_data(file):
  """Makes the header one byte longer, so that no tensor is aligned."""
  raw = file.read_bytes()
  n = int.from_bytes(raw[:8], 'little')
  file.write_bytes((n + 1).to_bytes(8, 'little') + raw[8 : 8 + n] + b' ' + raw[8 + n :])
