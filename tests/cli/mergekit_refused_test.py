"""--mergekit_yaml: what is refused, by name."""

import pathlib

import pytest
import yaml

from resmerge_jax.cli import merge, plan
from resmerge_jax.mergekit_yaml.translate import translate
from tests import commands
from tests.cli.merge_test import assert_refused
from tests.cli.mergekit_documents import TASK_ARITHMETIC, assert_message, read


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch) -> None:
  """A working directory with the folders base, a and b."""
  for name in ('base', 'a', 'b'):
    (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path)


CHANGES = [  # of TASK_ARITHMETIC: text, its replacement, parts of the message
  ('task_arithmetic', 'dora', 'merge_method: dora cannot be honoured', 'use one of'),
  ('task_arithmetic', 'passthrough', 'merge_method: passthrough cannot be honoured'),
  ('base_model: base', '', 'base_model: got nothing, task_arithmetic needs it here'),
  (
    'base_model: base',
    'base_model: meta-llama/Llama-3.1-8B',
    'base_model: meta-llama/Llama-3.1-8B cannot be honoured',
    'write hf://meta-llama/Llama-3.1-8B, or fetch it first (hf download meta',
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
