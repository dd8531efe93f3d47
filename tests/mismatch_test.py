"""Checkpoints that do not match in every tensor: what is refused, printed, recorded."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import resmerge_jax
from resmerge_jax.cli import merge, plan
from resmerge_jax.errors import InputError
from tests import commands, folders, groups
from tests.cli.merge_test import assert_refused, flags_of
from tests.clients_test import load
from tests.groups import MEAN

EMBED, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
UP = 'model.layers.0.mlp.up_proj.weight'
INV_FREQ = 'model.layers.{}.self_attn.rotary_emb.inv_freq'
TEXT: dict[str, Any] = {
  'vocab_size': 32,
  'hidden_size': 16,
  'intermediate_size': 16,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'layer_types': ['full_attention'],
}
VISION = {
  'hidden_size': 16,
  'intermediate_size': 16,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'image_size': 8,
  'patch_size': 4,
}
LANGUAGE = 'language_model.model.'  # as transformers saves Gemma 3


def inputs(output: pathlib.Path) -> list[dict[str, Any]]:
  return json.loads((output / 'manifest.json').read_text())['inputs']


def run(group: groups.Group, output: pathlib.Path, *words: str) -> list[str]:
  """What a merge by the mean prints; the dry run warns of the same."""
  args = *flags_of(group, output), '--method=task_arithmetic', *words
  planned, done = commands.run(plan, *args), commands.run(merge, *args)
  assert (planned.status, done.status) == (0, 0), planned.err + done.err
  printed = [x for x in done.out.splitlines() if x.startswith('warning: expert')]
  assert [x for x in planned.out.splitlines() if x in printed] == printed
  manifest = json.loads((output / 'manifest.json').read_text())
  card = (output / 'README.md').read_text()
  for line in printed:
    assert line.removeprefix('warning: ') in manifest['warnings']
    assert f'- {line.removeprefix("warning: ")}\n' in card
  return [x for x in printed if 'tokenizer' not in x]


@pytest.fixture
def extra(tmp_path) -> groups.Group:
  """Expert e0 has a value head that the base has not."""
  tensors = [folders.tensors(i) for i in range(3)]
  tensors[1] |= {f'v_head.{i}.weight': tensors[0][UP] for i in range(2)}
  return groups.write(tmp_path, tensors[0], tensors[1:])


def test_extra_tensors(extra, tmp_path):
  output = tmp_path / 'out'
  done = commands.run(merge, *flags_of(extra, output))
  assert_refused(
    done,
    "expert 'e0': v_head.1.weight: BF16 [8, 4], the base has no such tensor",
    '--extra=ignore leaves out what the base has not',
  )
  assert '--missing' not in done.err
  assert run(extra, output, '--extra=ignore') == [
    "warning: expert 'e0': ignoring tensors that the base does not have "
    '(--extra=ignore): v_head.{0..1}.weight (2 in all)'
  ]
  assert [entry['ignored'] for entry in inputs(output)] == [
    [],
    ['v_head.0.weight', 'v_head.1.weight'],
    [],
  ]
  assert sorted(groups.load(output)) == sorted(folders.tensors())


def test_missing_tensors_count_as_unchanged(tmp_path):
  base, *experts = (folders.tensors(i) for i in range(3))
  del experts[0][UP]
  for expert in experts:
    del expert['model.norm.weight']
  group = groups.write(tmp_path, base, experts)
  output = tmp_path / 'out'
  done = commands.run(plan, *flags_of(group, output))
  assert_refused(
    done,
    f"expert 'e0': {UP} is missing, the base has BF16 [8, 4]",
    '--missing=base lets an expert count as unchanged where it has no tensor',
  )
  assert '--extra' not in done.err
  lacks = 'lacks tensors, which count as unchanged (--missing=base)'
  assert run(group, output, '--missing=base') == [
    f"warning: expert 'e0': {lacks}: {UP}, model.norm.weight (2 in all)",
    f"warning: expert 'e1': {lacks}: model.norm.weight (1 in all)",
  ]
  assert [entry['absent'] for entry in inputs(output)] == [
    [],
    [UP, 'model.norm.weight'],
    ['model.norm.weight'],
  ]
  got = groups.load(output)
  wide, other = (tensors[UP].astype(np.float32) for tensors in (base, experts[1]))
  want = wide + (np.float32(0.5) * (wide - wide) + np.float32(0.5) * (other - wide))
  np.testing.assert_array_equal(got[UP].astype(np.float32), want.astype(groups.BF16))
  np.testing.assert_array_equal(got['model.norm.weight'], base['model.norm.weight'])
  records = {r['name']: r for r in groups.records(output)}
  assert records[UP]['delta_norm'][0] == 0 < records[UP]['delta_norm'][1]
  assert records['model.norm.weight']['rule'] == 'base'


def test_a_tensor_that_one_expert_lacks_with_padded_vocabularies(tmp_path):
  """Rows that it lacks have no say; tensors that it lacks are unchanged ones."""
  base, *experts = (folders.tensors(i, vocab=n) for i, n in enumerate((6, 6, 8)))
  del experts[0][UP]
  group = groups.write(tmp_path, base, experts)
  settings: dict[str, Any] = {'method': MEAN, 'missing': 'base', 'vocab': 'pad'}
  merged = groups.merge(group, tmp_path / 'out', **settings, output_dtype='float32')
  got = groups.load(merged.output)
  wide, other = (tensors[UP].astype(np.float32) for tensors in (base, experts[1]))
  np.testing.assert_array_equal(got[UP], wide + np.float32(0.5) * (other - wide))
  np.testing.assert_array_equal(got[EMBED][6:], experts[1][EMBED][6:])


def test_buffers(tmp_path):
  """The base's are copied, an expert's are left out; no flag is needed."""
  base, *experts = (folders.tensors(i) for i in range(3))
  base |= {INV_FREQ.format(i): np.float32([1, 0.1]) for i in range(2)}
  experts[0] |= {INV_FREQ.format(0): np.float32([9, 9]), 'model.position_ids': [0]}
  experts[0]['model.position_ids'] = np.arange(3)
  group = groups.write(tmp_path, base, experts)
  output = tmp_path / 'out'
  lacks = "lacks buffers, the output has the base's: "
  assert run(group, output) == [  # weights as bfloat16; a buffer keeps its float32
    "warning: expert 'e0': ignoring buffers, which config.json determines: "
    'model.position_ids (1 in all)',
    f"warning: expert 'e0': {lacks}{INV_FREQ.format(1)} (1 in all)",
    f"warning: expert 'e1': {lacks}{INV_FREQ.format('{0..1}')} (2 in all)",
  ]
  got = groups.load(output)
  assert got.keys() == base.keys()
  for i in range(2):
    groups.assert_same_bits({'': got[INV_FREQ.format(i)]}, {'': np.float32([1, 0.1])})
  assert [entry['ignored'] for entry in inputs(output)] == [
    [],
    ['model.position_ids'],
    [],
  ]


@pytest.mark.parametrize('same', [True, False])
def test_a_stored_head_that_is_the_embedding(tmp_path, same):
  """Of an expert that ties it, as the base does, which does not store it."""
  expert = folders.tensors(1)
  expert[HEAD] = expert[EMBED].copy()
  expert[HEAD][-1, -1] += not same
  group = groups.write(tmp_path, folders.tensors(), [expert])
  settings: dict[str, Any] = {'method': MEAN, 'output_dtype': 'base'}
  if same:
    merged = groups.merge(group, tmp_path / 'out', **settings)
  else:
    text = (
      r"expert 'e0': lm_head.weight is not model.embed_tokens.weight, though config."
      r'json ties them\nWhy.*\n.*pass --extra=ignore'
    )
    with pytest.raises(InputError, match=text):
      groups.merge(group, tmp_path / 'out', **settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['base', 'e0']
    with pytest.raises(InputError, match='though config'):
      resmerge_jax.load_merged(groups.config_of(group, '', **settings))
    merged = groups.merge(group, tmp_path / 'out', extra='ignore', **settings)
  del expert[HEAD]
  groups.assert_same_bits(groups.load(merged.output), expert)
  assert inputs(merged.output)[1]['ignored'] == [HEAD]


@pytest.fixture(scope='module')
def gemma(tmp_path_factory) -> groups.Group:
  """A multimodal base, one expert of its kind and one of language alone."""
  path = tmp_path_factory.mktemp('gemma')
  torch.manual_seed(0)
  text = transformers.Gemma3TextConfig(**TEXT)
  whole = transformers.Gemma3Config(
    text_config=text.to_dict(), vision_config=VISION, mm_tokens_per_image=4
  )
  model = transformers.Gemma3ForConditionalGeneration(whole).to(torch.bfloat16)
  model.save_pretrained(path / 'base')
  language = transformers.Gemma3ForCausalLM(text).to(torch.bfloat16)
  language.model.load_state_dict(model.model.language_model.state_dict())
  for part in (model.model.language_model, language):
    for value in part.parameters():
      value.data += 0.1 * torch.randn_like(value)
  model.save_pretrained(path / 'whole')
  language.save_pretrained(path / 'text')
  return groups.Group(path / 'base', (path / 'whole', path / 'text'))


def test_an_expert_of_language_alone(gemma, tmp_path, caplog):
  output = tmp_path / 'out'
  done = commands.run(plan, *flags_of(gemma, output))
  assert_refused(
    done,
    'multi_modal_projector.mm_input_projection_weight is missing',
    '--missing=base',
  )
  assert LANGUAGE not in done.err
  named, lacks, architecture = run(gemma, output, '--missing=base')
  assert named == (
    "warning: expert 'text': 15 tensors are called model.* for the base's "
    f'{LANGUAGE}*, and taken as these'
  )
  assert lacks.startswith(
    "warning: expert 'text': lacks tensors, which count as unchanged (--missing=base): "
    'multi_modal_projector.mm_input_projection_weight, '
  )
  assert lacks.endswith(' (34 in all)')
  assert 'architectures of config.json' in architecture  # no other field differs

  base, whole, text = map(groups.load, (gemma.base, *gemma.experts))
  got = groups.load(output)
  for name, value in base.items():
    if not name.startswith(LANGUAGE):
      np.testing.assert_array_equal(got[name], value, name)
      continue
    stored = f'model.{name.removeprefix(LANGUAGE)}'
    assert inputs(output)[2]['read_as'][name] == stored
    wide = value.astype(np.float32)
    deltas = [x.astype(np.float32) - wide for x in (whole[name], text[stored])]
    want = wide + (np.float32(0.5) * deltas[0] + np.float32(0.5) * deltas[1])
    np.testing.assert_array_equal(got[name], want.astype(groups.BF16), name)
  load(output, caplog, transformers.AutoModelForImageTextToText)


def test_only_experts_of_language_alone(gemma, tmp_path):
  """The rest is copied: no program runs for it, whatever the method."""
  group = groups.Group(gemma.base, gemma.experts[1:])
  output = tmp_path / 'out'
  done = commands.run(plan, *flags_of(group, output), '--missing=base', '--json')
  planned = json.loads(done.out)
  assert planned['rules'][0]['why'] == 'no expert has it: copied from the base'
  assert planned['rules'][0]['tensors'] == 34
  merged = groups.merge(group, output, method=MEAN, missing='base')
  got, base = groups.load(merged.output), groups.load(group.base)
  text = groups.load(group.experts[0])
  for name, value in base.items():
    ending = name.removeprefix(LANGUAGE)
    want = text[f'model.{ending}'] if ending != name else value
    # base + (expert - base) in float32, rounded: the expert, or next to it.
    groups.assert_within_a_unit(got[name], want, 0.01, name)
