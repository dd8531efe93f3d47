"""MergeConfig: what it refuses, and its way to JSON and back."""

import json
import pathlib

import pytest

from resmerge_jax.config import MergeConfig, config_from, to_plain
from resmerge_jax.errors import InputError
from resmerge_jax.methods.resmerge_params import ResMerge
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.parameters import make_method
from resmerge_jax.plan.rules import RELEASE_RULES, Rule

PLACES = {'base': 'b', 'experts': ('e0', 'e1'), 'output': 'o'}


def test_defaults():
  config = MergeConfig(**PLACES)
  assert config.method == ResMerge()
  assert config.rules == RELEASE_RULES
  assert (config.output_dtype, config.vocab, config.seed) == ('bfloat16', 'error', 0)
  assert (config.max_shard_size, config.memory_budget) == (None, None)


def test_sizes_and_sequences_are_normalised():
  config = MergeConfig(
    base=pathlib.Path('b'),
    experts=['e0', 'e1'],
    output='o',
    expert_ids=['x', 'y'],
    max_shard_size='5GB',
    memory_budget='2GiB',
  )
  assert config.experts == ('e0', 'e1')
  assert config.expert_ids == ('x', 'y')
  assert (config.max_shard_size, config.memory_budget) == (5 * 10**9, 2 * 2**30)


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'experts': ()}, 'no experts given\nWhat to do: pass --experts=DIR,DIR,...'),
    (
      {'output_dtype': 'int8'},
      "output_dtype: got 'int8', expected base | bfloat16 | float16 | float32",
    ),
    ({'vocab': 'x'}, "vocab: got 'x', expected error | base_rows | pad"),
    ({'extra': 'x'}, "extra: got 'x', expected error | ignore"),
    ({'missing': 'x'}, "missing: got 'x', expected error | base"),
    (
      {'expert_ids': ('a',)},
      'expert_ids: got 1 for 2 experts\nWhat to do: give one per expert, in the order '
      'of the experts, or none',
    ),
    (
      {'weights': (1, 2, 3), 'method': TaskArithmetic()},
      'weights: got 3 for 2 experts\nWhat to do: give one per expert, in the order of '
      'the experts, or none',
    ),
    (
      {'weights': (1, 2)},
      'weights: resmerge defines none\nWhy it matters: its paper treats the experts '
      'alike; weighting only the tensors outside it would merge two halves of the model '
      'by different rules\nWhat to do: leave weights out, or use a method that takes '
      'them (task_arithmetic)',
    ),
    (
      {'weights': (1, -1), 'method': TaskArithmetic()},
      'weights: [1, -1] sum to zero, so their mean does not exist\nWhat to do: change '
      "the weights or set method.reduce='sum'",
    ),
    ({'seed': -1}, 'seed: got -1, expected 0 or more'),
    (
      {'memory_budget': 'lots'},
      "not a size: 'lots'\nWhat to do: write bytes, or a number with a unit such as "
      "'2GiB' or '5GB'",
    ),
    ({'max_shard_size': 0}, 'not a size: 0\n'),
    (
      {'method': 'resmerge'},
      'method: got parameters of type str\nWhat to do: pass one of ResMerge, '
      'TaskArithmetic',
    ),
  ],
)
def test_refused(settings, text):
  with pytest.raises(InputError) as caught:
    MergeConfig(**{**PLACES, **settings})
  assert str(caught.value).startswith(text)


def test_weights_that_sum_to_zero_are_fine_in_a_sum():
  MergeConfig(**PLACES, weights=(1, -1), method=TaskArithmetic(reduce='sum'))


@pytest.mark.parametrize(
  'config',
  [
    MergeConfig(**PLACES),
    MergeConfig(
      pathlib.Path('b'),
      (pathlib.Path('e0'), 'e1'),
      pathlib.Path('o'),
      expert_ids=('x', 'y'),
      method=ResMerge(
        variant='release',
        head_rank=2,
        family_scale={'attention': 1.0, 'ffn': 0.5, 'other': 0.0},
      ),
      outside=TaskArithmetic('sum', 0.3),
      rules=(Rule('norm', 'base', 'kept', ndim=(1,)), Rule('', 'method', 'rest')),
      output_dtype='base',
      max_shard_size='1GB',
      memory_budget=2**31,
      vocab='pad',
      overwrite=True,
      seed=4,
    ),
    MergeConfig(**PLACES, method=TaskArithmetic('sum', 2.0), weights=(1.0, -0.5)),
  ],
)
def test_json_and_back(config):
  text = json.dumps(to_plain(config))
  again = config_from(json.loads(text))
  assert json.dumps(to_plain(again)) == text
  assert again.method == config.method
  assert again.outside == config.outside
  assert again.rules == config.rules
  assert again.weights == config.weights


def test_how_a_run_starts_is_no_part_of_what_it_makes():
  assert to_plain(MergeConfig(**PLACES, resume=True)) == to_plain(MergeConfig(**PLACES))


@pytest.mark.parametrize(
  ('values', 'text'),
  [
    (
      {},
      'missing flags\n  - --base\n  - --experts\n  - --output\nWhat to do: '
      'python -m tools.merge --help shows examples',
    ),
    (
      {**PLACES, 'metod': {}, 'sed': 1},
      "config: unknown field\n  - 'metod' (did you mean 'method'?)\n"
      "  - 'sed' (did you mean 'seed'?)\nWhat to do: known fields: base, experts, ",
    ),
    ({**PLACES, 'seed': 'x'}, "config: wrong type\n  - seed: got 'x' (str)"),
    (
      {**PLACES, 'method': {'name': 'average'}},
      "unknown method 'average'\nWhat to do: use one of resmerge, task_arithmetic, linear",
    ),
    (
      {**PLACES, 'method': {'rank': 2}},
      "method resmerge: unknown field\n  - 'rank'",
    ),
    (
      {**PLACES, 'outside': {'scale': 'x'}},
      "method task_arithmetic: wrong type\n  - scale: got 'x' (str), expected float",
    ),
    (
      {**PLACES, 'rules': [{'match': ''}, {'match': '', 'action': 'base', 'x': 1}]},
      "rules: wrong fields\n  - rule 0: got ['match']\n"
      "  - rule 1: got ['action', 'match', 'x']\nWhat to do: each rule has match, ",
    ),
    (
      {**PLACES, 'rules': [{'match': '(', 'action': 'base'}]},
      "rule '(': not a regular expression: ",
    ),
    (
      {
        **PLACES,
        'rules': [{'match': 'x', 'action': 'method', 'method': {'name': 'nearswap'}}],
      },
      "rule 'x', method nearswap: got 2 experts, expected 1 beside the base",
    ),
    (
      {**PLACES, 'rules': [{'match': 'x', 'action': 'method', 'weights': [1.0]}]},
      "rule 'x': got 1 weights for 2 experts",
    ),
    (
      {**PLACES, 'rules': [{'match': '', 'action': 'copy'}]},
      "rule '': action 'copy', expected method | task_arithmetic | base",
    ),
  ],
)
def test_bad_dictionaries(values, text):
  with pytest.raises(InputError) as caught:
    config_from(values)
  assert str(caught.value).startswith(text)


def test_a_method_from_a_mapping_or_itself():
  params = ResMerge(variant='release', head_rank=2)
  assert make_method('resmerge', {'variant': 'release', 'head_rank': 2}) == params
  assert make_method('resmerge', params) is params
  assert make_method('task_arithmetic') == TaskArithmetic()


def test_an_output_may_be_a_path(tmp_path):
  values = {**PLACES, 'output': tmp_path}
  assert config_from(values).output == tmp_path
