"""--mergekit_yaml: what configurations of mergekit become."""

import json

import pytest
import yaml

from resmerge_jax.cli import merge, plan
from resmerge_jax.mergekit_yaml.table import KITS
from resmerge_jax.methods.table import METHODS
from tests import commands, folders, groups
from tests.cli.mergekit_documents import (
  TASK_ARITHMETIC,
  assert_message,
  read,
  resolved,
)


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch) -> None:
  """A working directory with the folders base, a and b."""
  for name in ('base', 'a', 'b'):
    (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path)


def test_one_value_for_all():
  values, notes = read(TASK_ARITHMETIC)
  rules = values.pop('rules')
  assert values == {
    'base': 'base',
    'experts': ['a', 'b'],
    'method': {'name': 'task_arithmetic', 'reduce': 'sum', 'scale': 1.5},
    'weights': (0.7, -0.3),
    'output_dtype': 'bfloat16',
  }
  assert [(r.match, r.action, r.why, r.method, r.weights) for r in rules] == [
    ('', 'base', 'not floating point: copied from the base', None, None),
    ('', 'method', 'every tensor', None, None),
  ]
  assert notes == ()


def test_notes_on_what_has_no_effect():
  _, notes = read(
    """
merge_method: task_arithmetic
base_model: base
models:
  - model: base
    parameters: {weight: 1}
  - {model: a, parameters: {weight: 1, density: 0.5}}
parameters: {normalize: 1.0, int8_mask: true}
dtype: bfloat16
tokenizer_source: base
"""
  )
  assert [note.split(':')[0] for note in notes] == [
    'dtype bfloat16',
    'parameters.int8_mask',
    'models[0].parameters',
    'models[1].parameters.density',
  ]
  assert 'as in mergekit: it is the base_model' in notes[2]


GRADIENT = """
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 5]}
      - model: a
        layer_range: [0, 5]
        parameters:
          weight:
            - {filter: self_attn, value: [0, 1]}
            - value: 0.25
      - model: b
        layer_range: [0, 5]
        parameters: {weight: [1, 0, "1e-1"]}
parameters:
  lambda: [1, 2]
"""


def test_filters_and_gradients():
  """Values by hand: lists spread over the layers, their first entry outside them."""
  values, _ = read(GRADIENT)
  assert values['output_dtype'] == 'base'
  assert values['experts'] == ['a', 'b']
  second = [1, 0.5, 0, 0.05, 0.1]
  for name, (params, weights) in resolved(values).items():
    parts = name.split('.')
    layer = int(parts[2]) if 'layers' in parts else 0
    first = layer / 4 if 'self_attn' in parts else 0.25
    assert weights == pytest.approx((first, second[layer]), abs=1e-12), name
    assert (params.reduce, params.scale) == ('sum', 1 + layer / 4), name


def test_a_list_of_weights_stays_one_rule():
  values, _ = read(
    """
merge_method: task_arithmetic
base_model: base
models:
  - {model: a, parameters: {weight: [0, 0.5, 1]}}
  - {model: b, parameters: {weight: 2}}
"""
  )
  _, inside, outside = values['rules']
  assert (values['weights'], outside.weights) == ((0.0, 2.0), None)
  assert inside.weights == ((0.0, 0.5, 1.0), 2.0)
  assert inside.why == 'layers 0, 1, 2, 3, 4: weight [[0, 0.5, 1], 2]'
  assert outside.why == 'every other tensor: weight [0, 2]'


def test_rules_keep_upper_case_apart_and_need_no_rule_per_set():
  values, _ = read(
    """
merge_method: task_arithmetic
base_model: base
models: [{model: a}]
parameters:
  weight:
    - {filter: MLP, value: 9}
    - {filter: self_attn, value: 2}
    - {filter: q_proj, value: 3}
    - {filter: "*", value: 1}
    - {filter: mlp, value: 4}
"""
  )
  assert [(rule.match, rule.weights) for rule in values['rules'][1:]] == [
    ('(?=.*(?-i:self_attn))(?=.*(?-i:q_proj))', (2.0,)),
    ('', None),
  ]
  for name, (_, weights) in resolved(values).items():
    assert weights == ((2.0,) if 'self_attn' in name else (1.0,)), name


def test_filters_that_leave_nothing_out_need_no_default():
  filters = ['layers', 'embed', 'norm', 'lm_head']
  settings = ', '.join(
    f'{{filter: {text}, value: {at}}}' for at, text in enumerate(filters)
  )
  text = (
    'merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a}]\n'
    f'parameters: {{weight: [{settings}]}}'
  )
  for name, (_, weights) in resolved(read(text)[0]).items():
    first = next(at for at, part in enumerate(filters) if part in name)
    assert weights == (first,), name
  assert_message(
    lambda: read(text.replace('filter: norm', 'filter: nrom')),
    'no weight of a for model.norm.weight',
    'ends with - value: NUMBER',
  )


def test_several_slices_that_are_the_whole():
  slices = """
merge_method: task_arithmetic
base_model: base
slices:
  - sources: [{model: base, layer_range: [0, 2]}, {model: a, layer_range: [0, 2]}]
  - sources: [{model: base, layer_range: [2, 5]}, {model: a, layer_range: [2, 5]}]
parameters: {weight: 1}
"""
  values, _ = read(slices)
  assert (values['experts'], values['weights']) == (['a'], (1.0,))
  assert_message(
    lambda: read(slices.replace('[2, 5]', '[1, 4]')),
    'slices: 0-2, 1-4 cannot be honoured',
    'let the slices follow each other from 0 to 5',
  )
  assert_message(
    lambda: read(slices.replace('weight: 1', 'weight: [0, 1]')),
    'slices: 2 of them, and a list of values over depth cannot be honoured',
    'write one slice with layer_range [0, 5]',
  )
  assert_message(
    lambda: read(slices.replace('a, layer_range: [2, 5]', 'b, layer_range: [2, 5]')),
    'slices[1].sources: base, b cannot be honoured',
  )
  assert_message(
    lambda: read(slices.replace('[2, 5]}]', '[2, 5], parameters: {weight: 2}}]')),
    "slices[1].sources[1].parameters: {'weight': 2} cannot be honoured",
    'write one slice with a list of values',
  )


BASES = {  # method: base and experts of models a, b with base_model base, and without
  'linear': (('base', ['a', 'b', 'base']), ('a', ['a', 'b'])),
  'karcher': (('base', ['a', 'b', 'base']), ('a', ['a', 'b'])),
  'nuslerp': (('base', ['a', 'b']), ('a', ['a', 'b'])),
  'multislerp': (('base', ['a', 'b']), None),
  'model_stock': (('base', ['a', 'b']), None),
  'ties': (('base', ['a', 'b']), None),
}
HERE = [name for name in BASES if KITS[name].ours in METHODS]
NO_WEIGHTS = ('karcher', 'model_stock')


@pytest.mark.parametrize('method', HERE)
def test_what_the_base_is_to_each_method(method):
  text = f'merge_method: {method}\nmodels: [{{model: a}}, {{model: b}}]\n'
  if method not in NO_WEIGHTS:
    text += 'parameters: {weight: 0.5}\n'
  with_base, without = BASES[method]
  values, _ = read(f'{text}base_model: base\n')
  assert (values['base'], values['experts']) == with_base
  if without is None:
    assert_message(lambda: read(text), f'base_model: got nothing, {method} needs it')
    return
  values, notes = read(text)
  assert (values['base'], values['experts']) == without
  assert notes == ('no base_model: config.json and tokenizer are those of a',)


def test_plan_and_merge(tmp_path):
  group = groups.write(
    tmp_path / 'group', folders.tensors(), [folders.tensors(1), folders.tensors(2)]
  )
  file = tmp_path / 'merge.yaml'
  file.write_text(
    yaml.safe_dump(
      {
        'merge_method': 'task_arithmetic',
        'base_model': str(group.base),
        'models': [
          {'model': str(path), 'parameters': {'weight': [0, 1]}}
          for path in group.experts
        ],
        'parameters': {'int8_mask': True},
        'dtype': 'float32',
      }
    )
  )
  flags = [f'--mergekit_yaml={file}', f'--output={tmp_path / "out"}']
  done = commands.run(plan, *flags, '--json')
  assert (done.status, done.err) == (0, '')
  notes = json.loads(done.out)['notes']
  assert notes[0].startswith('parameters.int8_mask: without effect: ')
  done = commands.run(merge, *flags, '--expert_ids=x,y', '--seed=3')
  assert (done.status, done.err) == (0, '')
  assert done.out.startswith('note: parameters.int8_mask: without effect: ')
  base, *experts = (groups.load(path) for path in (group.base, *group.experts))
  for name, got in groups.load(tmp_path / 'out').items():
    second = 'layers.1.' in name
    want = sum(e[name].astype(float) - base[name].astype(float) for e in experts)
    want = base[name].astype(float) + want * second
    # One float32 sum against one in float64.
    assert abs(got - want).max() < 1e-6, name
