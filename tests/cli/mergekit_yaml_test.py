"""--mergekit_yaml: what configurations of mergekit become, and what is refused."""

import json
import pathlib
from typing import Any

import pytest
import yaml

from resmerge_jax.cli import merge, plan
from resmerge_jax.config import config_from
from resmerge_jax.errors import InputError
from resmerge_jax.mergekit_yaml.table import KITS
from resmerge_jax.mergekit_yaml.translate import translate
from resmerge_jax.methods.table import METHODS
from resmerge_jax.plan.rules import assign, depth_of, weights_at
from resmerge_jax.types import TensorRef
from tests import commands, folders, groups
from tests.cli.merge_test import assert_refused

N_LAYERS = 5
NAMES = [
  'model.embed_tokens.weight',
  *(
    f'model.layers.{layer}.{part}.weight'
    for layer in range(N_LAYERS)
    for part in ('self_attn.q_proj', 'mlp.up_proj', 'input_layernorm')
  ),
  'model.norm.weight',
  'lm_head.weight',
]


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch) -> None:
  """A working directory with the folders base, a and b."""
  for name in ('base', 'a', 'b'):
    (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path)


def read(text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
  return translate(yaml.safe_load(text), {'base': NAMES, 'a': NAMES}.__getitem__)


def resolved(values: dict[str, Any]) -> dict[str, tuple[Any, tuple[float, ...] | None]]:
  """What the pipeline gives each tensor: the method's parameters, and the weights."""
  config = config_from({**values, 'output': 'out'})
  rules = assign([TensorRef(n, 'BF16', (4, 4)) for n in NAMES], config.rules)
  found = {}
  for name, rule in rules.items():
    assert rule.action == 'method'
    params = rule.method[1] if rule.method else config.method
    weights = rule.weights or config.weights
    found[name] = (
      params,
      None if weights is None else weights_at(weights, depth_of(name, N_LAYERS)),
    )
  return found


TASK_ARITHMETIC = """
merge_method: task_arithmetic
base_model: base
models:
  - model: a
    parameters: {weight: 0.7}
  - model: b
    parameters: {weight: -0.3}
parameters: {lambda: 1.5}
dtype: float32
out_dtype: bfloat16
"""


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


def assert_message(call, *texts: str) -> None:
  with pytest.raises(InputError) as error:
    call()
  for text in texts:
    assert text in str(error.value)


CHANGES = [  # of TASK_ARITHMETIC: text, its replacement, parts of the message
  ('task_arithmetic', 'dora', 'merge_method: dora cannot be honoured', 'use one of'),
  ('task_arithmetic', 'passthrough', 'merge_method: passthrough cannot be honoured'),
  ('base_model: base', '', 'base_model: got nothing, task_arithmetic needs it here'),
  (
    'base_model: base',
    'base_model: meta-llama/Llama-3.1-8B',
    'base_model: meta-llama/Llama-3.1-8B cannot be honoured',
    'hf download meta-llama/Llama-3.1-8B --local-dir FOLDER',
  ),
  (
    '- model: a',
    '- model: a+lora',
    'models[0].model: a+lora cannot',
    'merge_and_unload',
  ),
  (
    '- model: a',
    '- model: {path: a}',
    "models[0].model: got {'path': 'a'}, expected the",
  ),
  (
    '- model: b',
    '- model: a',
    'models[1].parameters: a cannot be',
    'it is in the list twice',
  ),
  ('weight: -0.3', 'wieght: -0.3', 'models[1].parameters.wieght', "mean 'weight'?"),
  ('weight: -0.3', 'density: 1', 'no weight of b for model.embed_tokens.weight'),
  ('weight: -0.3', 'weight: x', "models[1].parameters.weight: got 'x', expected a fin"),
  ('weight: -0.3', 'weight: []', 'models[1].parameters.weight: got an empty list'),
  ('weight: -0.3', 'weight: .nan', 'got nan, expected a finite number'),
  ('weight: -0.3', 'weight: [1, {value: 2}]', 'weight[0]: got 1, expected the keys'),
  ('weight: -0.3', 'weight: [{valeu: 2}]', "weight[0]: got {'valeu': 2}, expected the"),
  ('weight: -0.3', 'weight: {filter: 3, value: 2}', '.filter: got 3, expected a part'),
  (
    'weight: -0.3',
    'weight: -0.3, lambda: 2',
    'models[1].parameters.lambda: 2 cannot be honoured',
    'move it to the parameters at the top',
  ),
  (
    'lambda: 1.5',
    'normalize: maybe',
    "parameters.normalize: got 'maybe', expected tru",
  ),
  ('lambda: 1.5', 't: 0.5', 'parameters.t: 0.5 cannot', 'task_arithmetic has no such'),
  ('dtype: float32', 'dtype: float64', 'dtype: float64 cannot be honoured', 'bfloat16'),
  ('dtype: float32', 'dtype: [1]', 'dtype: got [1], expected a text'),
  ('dtype: float32', 'modules: {text: {}}', 'modules: text cannot be honoured'),
  (
    'dtype: float32',
    'dytpe: float32',
    "unknown key\n  - 'dytpe' (did you mean 'dtype'",
  ),
  ('dtype: float32', 'slices: [{}]', 'got models and slices, expected one of them'),
  ('dtype: float32', 'chat_template: auto', 'chat_template: auto cannot be honoured'),
  ('dtype: float32', 'tokenizer_source: union', 'tokenizer_source: union cannot be'),
  (
    'dtype: float32',
    'tokenizer_source: a',
    'tokenizer_source: a cannot be',
    'write base',
  ),
  ('dtype: float32', 'tokenizer: {}\nname: x', "unknown key\n  - 'name'"),
  (
    'dtype: float32',
    'tokenizer: {source: base, pad_to_multiple_of: 8}',
    'tokenizer.pad_to_multiple_of: 8 cannot be honoured',
  ),
  ('dtype: float32', 'tokenizer: {tokens: {x: {}}}', 'tokenizer.tokens: '),
  ('dtype: float32', 'tokenizer: {source: union}', 'tokenizer.source: union cannot be'),
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change[1][:40])
def test_refused_by_name(change):
  old, new, *texts = change
  assert old in TASK_ARITHMETIC
  assert_message(lambda: read(TASK_ARITHMETIC.replace(old, new, 1)), *texts)


@pytest.mark.parametrize(
  ('slices', 'texts'),
  [
    ('[{sources: []}]', ['slices[0].sources: got [], expected a list with entries']),
    ('[{sources: [{model: a}]}]', ['slices[0].sources[0].layer_range: got None']),
    (
      '[{sources: [{model: base, layer_range: [0, 5]}, {model: a, layer_range: [0, 4]}]}]',
      ['slices[0]: 0-4, 0-5 cannot be honoured', 'the same layer_range'],
    ),
    (
      '[{sources: [{model: a, layer_range: [0, 5]}], residual_weight: 0.1}]',
      ['slices[0].residual_weight: 0.1 cannot be honoured'],
    ),
    (
      '[{sources: [{model: a, layer_range: [0, 5]}], base_model: b}]',
      ['slices[0].base_model: b cannot be', 'write base_model at the top'],
    ),
    (
      '[{sources: [{model: a, layer_range: [0, 4]}]}]',
      ['slices: 0-4 cannot be honoured', 'the models have layers 0-5'],
    ),
    (
      '[{sources: [{model: a, layer_range: [0, 5], density: 1}]}]',
      ["slices[0].sources[0]: unknown key\n  - 'density'"],
    ),
  ],
)
def test_slices_refused(slices, texts):
  text = (
    f'merge_method: task_arithmetic\nbase_model: base\nslices: {slices}\n'
    'parameters: {weight: 1}'
  )
  assert_message(lambda: read(text), *texts)


def test_weights_that_sum_to_zero():
  text = TASK_ARITHMETIC.replace('-0.3', '-0.7')
  assert read(text)[0]['weights'] == (0.7, -0.7)
  assert_message(
    lambda: read(text.replace('lambda: 1.5', 'normalize: true')),
    'weight: 0.7, -0.7 sum to zero for model.embed_tokens.weight',
  )


def test_layers_inside_layers():
  """Regular expressions find the wrong number in them; refused rather than mixed up."""
  names = ['blocks.0.block.1.w', 'blocks.1.block.0.w']
  text = TASK_ARITHMETIC.replace('1.5', '[1, 2, 4]')
  document = yaml.safe_load(text)
  assert_message(
    lambda: translate(document, {'base': [*names, 'blocks.2.w']}.__getitem__),
    'filters and layers of these tensors cannot be told apart',
  )


def test_files_that_are_none():
  for text, message in (
    ('a: [', 'not a YAML file of one document'),
    ('a: 1\n---\na: 2', 'expected a single document'),
    ('a: 1\na: 2', "found 'a' twice"),
    ('', 'the file: got None, expected keys with values'),
    ('- a', "the file: got ['a'], expected keys with values"),
  ):
    pathlib.Path('bad.yaml').write_text(text)
    done = commands.run(merge, '--mergekit_yaml=bad.yaml', '--output=out')
    assert_refused(done, message)
  done = commands.run(merge, '--mergekit_yaml=gone.yaml', '--output=out')
  assert_refused(done, '--mergekit_yaml=gone.yaml: [Errno 2] No such file')


def test_flags_that_say_the_same():
  pathlib.Path('merge.yaml').write_text(TASK_ARITHMETIC)
  flags = [
    '--method=task_arithmetic', '--config.method.scale=1', '--config=task_arithmetic',
    '--base=base', '--experts=a', '--weights=1', '--output_dtype=float32',
  ]  # fmt: skip
  done = commands.run(merge, '--mergekit_yaml=merge.yaml', '--output=out', *flags)
  assert_refused(done, '--mergekit_yaml says this already, or says otherwise')
  for flag in flags:
    assert f'  - {flag.partition("=")[0]}\n' in done.err
  done = commands.run(
    plan, '--mergekit_yaml=merge.yaml', '--output=out', '--shape=llama-3-70b'
  )
  assert_refused(done, '  - --shape\n')


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
