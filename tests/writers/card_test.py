"""The model card: complete, deterministic, and safe against odd ids."""

from resmerge_jax.writers.card import model_card

ARGUMENTS = {
  'name': 'merged',
  'base': ('Qwen2.5-0.5B', 'aa11'),
  'experts': {'math': 'bb22', 'co|de': 'cc33'},
  'method': 'resmerge',
  'reference': 'ResMerge (arXiv 2606.02252), equations 6-16',
  'parameters': {'variant': 'paper', 'rho': 0.3, 'family_scale': {'ffn': 1.0}},
  'rule_counts': {'resmerge': 168, 'task arithmetic': 122},
  'output_dtype': 'bfloat16',
  'formats': 'safetensors',
  'command': 'resmerge-merge --base=Qwen2.5-0.5B \\\n  --experts=math,co\\|de',
  'config': 'seed: 0\n# ```\n',
  'warnings': ['expert math:\n  no tokenizer files'],
  'versions': {'resmerge-jax': '0.1.0', 'jax': '0.10.2'},
}


def test_front_matter_names_base_and_experts():
  lines = model_card(**ARGUMENTS).splitlines()
  assert lines[:10] == [
    '---',
    'base_model:',
    '- "Qwen2.5-0.5B"',
    '- "math"',
    '- "co|de"',
    'base_model_relation: merge',
    'library_name: transformers',
    'tags:',
    '- merge',
    '- resmerge_jax',
  ]
  assert lines[10:13] == ['---', '', '# merged']
  assert 'license' not in model_card(**ARGUMENTS)


def test_everything_about_the_merge_is_in_the_card():
  card = model_card(**ARGUMENTS)
  for line in (
    '| `base` | `Qwen2.5-0.5B` | `aa11` |',
    '| `expert` | `math` | `bb22` |',
    '`resmerge`: ResMerge (arXiv 2606.02252), equations 6-16',
    '| `variant` | `paper` |',
    '| `rho` | `0.3` |',
    '| `family_scale.ffn` | `1.0` |',
    '290 tensors; dtype of the floating ones: `bfloat16`; written as safetensors.',
    '| `task arithmetic` | `122` |',
    '- expert math: no tokenizer files',
    '| `jax` | `0.10.2` |',
  ):
    assert line in card.splitlines(), line
  assert f'```bash\n{ARGUMENTS["command"]}\n```' in card
  assert 'A merge of 2 experts of `Qwen2.5-0.5B` by the method `resmerge`' in card


def test_the_caution_of_the_paper_is_there():
  card = model_card(**ARGUMENTS)
  assert '> [!WARNING]\n> A merge combines parameters' in card
  assert 'may inherit unsafe' in card
  assert 'before using it.' in card


def test_markup_in_values_cannot_break_the_card():
  card = model_card(**ARGUMENTS)
  assert '| `co\\|de` | `cc33` |' in card  # a bar inside a table cell
  assert '````\nseed: 0\n# ```\n````' in card  # a fence inside a block


def test_the_card_is_a_function_of_its_arguments():
  assert model_card(**ARGUMENTS) == model_card(**ARGUMENTS)
  bare = model_card(
    **{**ARGUMENTS, 'warnings': [], 'command': '', 'experts': {'a': 'b'}}
  )
  assert '## Warnings of the run\n\nNone.' in bare
  assert '```bash' not in bare
  assert '## How to make it again\n\n````\nseed: 0' in bare
  assert 'A merge of 1 expert of' in bare
