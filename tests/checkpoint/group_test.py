"""Groups of checkpoints: what may be merged, and every reason why not."""

import json

import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.checkpoint.folder import open_checkpoint
from resmerge_jax.checkpoint.group import check_group
from resmerge_jax.checkpoint.memory import memory_checkpoint
from resmerge_jax.checkpoint.model_config import config_differences
from resmerge_jax.errors import InputError
from tests import folders

EMBED = 'model.embed_tokens.weight'
HEAD = 'lm_head.weight'
UP = 'model.layers.0.mlp.up_proj.weight'


def make(id='base', weights=None, drop=(), **fields):
  weights = folders.tensors() if weights is None else weights
  weights = {name: array for name, array in weights.items() if name not in drop}
  return memory_checkpoint(weights, id, {**folders.CONFIG, **fields})


def error_of(base, *experts, vocab='error'):
  with pytest.raises(InputError) as caught:
    check_group(base, experts, vocab)
  return str(caught.value)


def test_equal_group():
  group = check_group(make(), [make('math'), make('code')])
  assert group.warnings == ()
  assert group.names == tuple(folders.tensors())
  assert [source.id for source in group.sources] == ['base', 'math', 'code']
  assert group.ref(0, UP) is group.base.tensors[UP]
  assert group.ref(2, UP) is group.experts[1].tensors[UP]
  assert group.out_shape(UP) == (8, 4)
  assert (group.uneven, group.aliases) == ((), {})


def test_floats_may_differ_in_width():
  wide = {n: a.astype(np.float32) for n, a in folders.tensors().items()}
  group = check_group(make(), [make('math', wide)])
  assert group.ref(1, UP).dtype == 'F32'


def test_no_experts():
  assert 'no experts given' in error_of(make())


def test_equal_ids_are_all_listed():
  message = error_of(make(), make('a'), make('b'), make('a'))
  assert "experts with equal ids\n  - 'a': in memory\n  - 'a': in memory\n" in message
  assert '--expert_ids=math,code' in message


def test_every_disagreement_is_listed_once():
  base = {
    **folders.tensors(),
    'steps': np.zeros(2, np.int64),
    'mask': np.zeros(3, bool),
  }
  bad = dict(base)
  del bad['model.norm.weight']
  bad['steps'] = np.zeros(2, np.int32)
  bad['mask'] = np.zeros(4, bool)
  bad['score.weight'] = np.zeros((1, 4), np.float32)
  bad[UP] = np.zeros((4, 8), ml_dtypes.bfloat16)
  bad['model.layers.1.mlp.up_proj.weight'] = np.zeros((8, 4), np.int32)
  message = error_of(make(weights=base), make('math', base), make('code', bad))
  assert "1 of 2 experts do not match base 'base'" in message
  assert "tensors that differ: 'code' (6)" in message
  for line in (
    'model.norm.weight is missing, the base has BF16 [4]',
    'steps is I32 [2], the base has I64 [2]',
    'mask is BOOL [4], the base has BOOL [3]',
    'score.weight: F32 [1, 4], the base has no such tensor',
    f'{UP} is BF16 [4, 8], the base has BF16 [8, 4]',
    'model.layers.1.mlp.up_proj.weight is I32 [8, 4], the base has BF16 [8, 4]',
  ):
    assert f"  - expert 'code': {line}\n" in message
  assert "expert 'math'" not in message
  assert '--vocab' not in message


def test_values_of_integers_may_differ():
  base = {'w': np.zeros((2, 2), np.float32), 'steps': np.array([1])}
  expert = {'w': np.zeros((2, 2), np.float32), 'steps': np.array([9])}
  assert check_group(make(weights=base), [make('a', expert)]).warnings == ()


def test_another_architecture_is_named_first():
  other = {n: np.zeros((3, 3), np.float32) for n in folders.tensors()}
  expert = make('llama', other, hidden_size=3, model_type='llama')
  message = error_of(make(), make('math'), expert)
  assert message.startswith(
    "expert 'llama' is another model: model_type is 'llama', of base 'base' 'qwen2'\n"
  )
  message = error_of(make(), make('wide', other, hidden_size=3))
  assert message.startswith("expert 'wide' is another model: hidden_size is 3, of base")


def test_vocabulary_error_explains_the_policies():
  message = error_of(make(), make('math', folders.tensors(vocab=8)))
  assert f"expert 'math': {EMBED} is BF16 [8, 4], the base has BF16 [6, 4]" in message
  assert '--vocab=base_rows (the output has the base' in message
  assert '--vocab=pad (the output has the most rows of any' in message
  assert 'give experts trained from this base' not in message


@pytest.mark.parametrize(('vocab', 'n_rows'), [('base_rows', 6), ('pad', 8)])
def test_vocabulary_policies(vocab, n_rows):
  base = make(weights=folders.tensors(tied=False), tie_word_embeddings=False)
  experts = [
    make(f'v{n}', folders.tensors(vocab=n, tied=False), tie_word_embeddings=False)
    for n in (8, 5, 6)
  ]
  group = check_group(base, experts, vocab)
  assert group.uneven == (EMBED, HEAD)
  for name in group.uneven:
    assert group.out_shape(name) == (n_rows, 4)
  assert group.out_shape(UP) == (8, 4)
  sizes = '(base 6, v8 8, v5 5, v6 6)'
  assert group.warnings == tuple(
    f'{name}: rows differ {sizes}; --vocab={vocab} gives {n_rows} rows'
    for name in (EMBED, HEAD)
  )


def test_vocabulary_policies_do_not_excuse_other_shapes():
  expert = folders.tensors()
  expert[EMBED] = np.zeros((6, 5), np.float32)
  expert[UP] = np.zeros((9, 4), np.float32)
  message = error_of(make(), make('math', expert), vocab='pad')
  assert f'{EMBED} is F32 [6, 5]' in message
  assert f'{UP} is F32 [9, 4]' in message


def test_stored_copy_of_a_tied_head_is_ignored():
  expert = make('math', folders.tensors(tied=False))
  group = check_group(make(), [expert])
  assert HEAD not in group.names
  assert group.warnings == (
    "expert 'math': ignoring its lm_head.weight: its config.json ties the head to the "
    'embedding, as the base does',
  )


def test_untied_expert_of_a_tied_base():
  expert = make('math', folders.tensors(tied=False), tie_word_embeddings=False)
  message = error_of(make(), expert)
  assert (
    "expert 'math': lm_head.weight: BF16 [6, 4], the base has no such tensor (the base "
    'ties its head, tie_word_embeddings of the expert is False)'
  ) in message


@pytest.mark.parametrize(
  ('expert_type', 'legal'), [('gemma', True), ('another', False), (None, False)]
)
def test_heads_tied_by_default(expert_type, legal):
  config = {'model_type': 'gemma', 'tie_word_embeddings': None}
  base = make(**config)
  config['model_type'] = expert_type
  expert = make('math', folders.tensors(tied=False), **config)
  if legal:
    assert 'ignoring its lm_head.weight' in check_group(base, [expert]).warnings[0]
  else:
    assert 'the base has no such tensor' in error_of(base, expert)


def test_tied_expert_of_an_untied_base_reads_its_embedding():
  base = make(weights=folders.tensors(tied=False), tie_word_embeddings=False)
  group = check_group(base, [make('math')])
  assert group.aliases == {1: {HEAD: EMBED}}
  assert group.ref(1, HEAD) == group.experts[0].tensors[EMBED]
  assert group.ref(0, HEAD) == group.base.tensors[HEAD]
  assert group.warnings == (
    "expert 'math': lm_head.weight is not stored; its config.json ties the head to the "
    'embedding, so model.embed_tokens.weight is taken',
    "expert 'math': tie_word_embeddings of config.json is True, of the base False; the "
    "output has the base's",
  )


def test_missing_head_that_is_not_tied():
  base = make(weights=folders.tensors(tied=False), tie_word_embeddings=False)
  message = error_of(base, make('math', tie_word_embeddings=False))
  assert 'lm_head.weight is missing, the base has BF16 [6, 4]' in message


def test_base_that_ties_and_stores_its_head():
  weights = folders.tensors(tied=False)
  group = check_group(make(weights=weights), [make('math', weights)])
  assert HEAD in group.names
  assert group.warnings == (
    "base 'base': config.json ties the head to the embedding, but lm_head.weight is "
    'stored too: programs that tie ignore it',
  )


def test_tied_expert_of_an_untied_base_that_stores_its_head():
  weights = folders.tensors(tied=False)
  base = make(weights=weights, tie_word_embeddings=False)
  group = check_group(base, [make('math', weights)])
  assert group.aliases == {}
  assert group.ref(1, HEAD) is group.experts[0].tensors[HEAD]
  assert group.warnings[0] == (
    "expert 'math': config.json ties the head to the embedding, but lm_head.weight is "
    'stored too: the stored one is taken'
  )


@pytest.mark.parametrize('architecture', ['Qwen2ForCausalLM', 'Qwen2Model'])
def test_untied_base_without_a_head(architecture):
  fields = {'tie_word_embeddings': False, 'architectures': [architecture]}
  group = check_group(make(**fields), [make('math', **fields)])
  assert group.warnings == (
    (
      "base 'base': config.json does not tie the head to the embedding, but no "
      'lm_head.weight is stored: the output has no head either',
    )
    if 'CausalLM' in architecture
    else ()
  )


def test_untied_head_of_an_expert_can_be_left_out():
  expert = make('math', folders.tensors(tied=False), tie_word_embeddings=False)
  group = check_group(make(), [expert], extra='ignore')
  assert group.ignored == {1: (HEAD,)}
  assert group.warnings[0] == (
    "expert 'math': ignoring tensors that the base does not have (--extra=ignore): "
    'lm_head.weight (1 in all)'
  )


def test_a_missing_head_can_count_as_unchanged():
  base = make(weights=folders.tensors(tied=False), tie_word_embeddings=False)
  group = check_group(base, [make('math', tie_word_embeddings=False)], missing='base')
  assert group.absent == {1: frozenset([HEAD])}
  assert (group.has(1, HEAD), group.has(1, EMBED)) == (False, True)
  assert group.ref(1, HEAD) is group.base.tensors[HEAD]
  assert group.nowhere == (HEAD,)


def test_the_language_part_of_a_multimodal_model():
  text = folders.tensors()
  whole = {f'language_model.{n}': x for n, x in text.items()}
  base = make(
    weights={**whole, 'visual.weight': text[UP]},
    model_type='vl',
    text_config={'model_type': 'qwen2', 'rope_theta': 10000.0},
  )
  group = check_group(base, [make('math', text)], missing='base')
  name = f'language_model.{UP}'
  assert group.aliases[1][name] == UP
  assert group.ref(1, name) is group.experts[0].tensors[UP]
  assert group.place(1, name) == (group.experts[0].tensors[UP], 0)
  assert group.nowhere == ('visual.weight',)
  assert group.warnings == (
    "expert 'math': 8 tensors are called model.* for the base's "
    'language_model.model.*, and taken as these',
    "expert 'math': lacks tensors, which count as unchanged (--missing=base): "
    'visual.weight (1 in all)',
  )


def test_another_prefix_does_not_excuse_another_shape():
  text = folders.tensors()
  whole = {f'language_model.{n}': x for n, x in text.items()}
  text[UP] = np.zeros((9, 4), np.float32)
  message = error_of(make(weights=whole), make('math', text))
  assert f"expert 'math': {UP} is F32 [9, 4], the base has BF16 [8, 4]" in message
  assert "tensors that differ: 'math' (1)" in message


def test_config_fields_that_change_the_computation():
  benign = {'transformers_version': '5', 'torch_dtype': 'float32', 'eos_token_id': [1]}
  expert = make('math', rope_theta=1e6, rms_norm_eps=1e-5, hidden_act='gelu', **benign)
  assert check_group(make(hidden_act='silu'), [expert]).warnings == (
    "expert 'math': hidden_act of config.json is 'gelu', of the base 'silu'; the output "
    "has the base's",
    "expert 'math': rms_norm_eps of config.json is 1e-05, of the base None; the output "
    "has the base's",
    "expert 'math': rope_theta of config.json is 1000000.0, of the base 10000.0; the "
    "output has the base's",
  )


def test_spellings_of_library_versions_are_the_same():
  old = {
    'rope_theta': 1e6,
    'rope_scaling': {'type': 'linear', 'factor': 2.0},
    'use_sliding_window': False,
    'sliding_window': 4096,
  }
  new = {
    'rope_parameters': {'rope_theta': 1e6, 'rope_type': 'linear', 'factor': 2.0},
    'use_sliding_window': False,
    'sliding_window': None,
    'layer_types': ['full_attention'],
  }
  assert config_differences(old, new) == []
  old['rope_scaling'] = None
  assert [d.field for d in config_differences(old, new)] == ['rope_scaling']


def test_folders_with_other_tokenizers(tmp_path):
  base = open_checkpoint(folders.write_folder(tmp_path / 'base'))
  files = {**folders.TOKENIZER, 'tokenizer.json': '{"version": "2.0"}'}
  experts = [
    open_checkpoint(folders.write_folder(tmp_path / 'same', n_shards=2)),
    open_checkpoint(folders.write_folder(tmp_path / 'other', files=files)),
    open_checkpoint(folders.write_folder(tmp_path / 'none', files={})),
  ]
  assert check_group(base, experts).warnings == (
    "expert 'other': tokenizer.json differ from the base's; the output has the base's",
  )


def test_errors_name_the_file(tmp_path):
  base = open_checkpoint(folders.write_folder(tmp_path / 'base'))
  weights = {**folders.tensors(), UP: np.zeros((2, 2), np.float32)}
  expert = open_checkpoint(folders.write_folder(tmp_path / 'math', weights, n_shards=2))
  file = json.loads((tmp_path / 'math' / 'model.safetensors.index.json').read_text())
  message = error_of(base, expert)
  assert f'{UP} in {file["weight_map"][UP]} is F32 [2, 2]' in message
