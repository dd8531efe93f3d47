"""Texts: drawing, ending, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from resmerge_jax.errors import InputError
from resmerge_jax.models.generate import _generate, _shared, generate, left_padded
from tests.models import tiny

PROMPTS = [[3, 4, 5], [7], [9, 10, 11]]


@pytest.fixture(scope='module')
def model():
  return tiny.decoder(tiny.QWEN3)


def texts(model, prompts=PROMPTS, **options):
  options = {'max_new': 6, 'eos_ids': ()} | options
  return generate(model, *left_padded(prompts, 4), **options)


def test_greedy_is_the_likeliest_next_token_of_the_whole_text(model):
  got = texts(model)
  for prompt, new in zip(PROMPTS, np.asarray(got.tokens_BxG), strict=True):
    whole = np.asarray([[*prompt, *new]], np.int32)
    padded = np.pad(whole, ((0, 0), (0, 12 - whole.shape[1])))  # one program
    mask = np.arange(12)[None] < whole.shape[1]
    best = np.asarray(tiny.forward(model, padded, mask)).argmax(-1)[0]
    assert list(best[len(prompt) - 1 : whole.shape[1] - 1]) == list(new)


@pytest.mark.parametrize(('shared', 'opening'), [(15, 0), (16, 16), (40, 32)])
def test_what_prompts_begin_with_goes_through_once(model, shared, opening):
  begun = [int(token) for token in np.random.default_rng(0).integers(1, 40, shared)]
  prompts = [[*begun, *prompt] for prompt in PROMPTS]
  tokens, mask = left_padded(prompts, 50)
  assert _shared(tokens, mask) == opening
  assert _shared(tokens[:1], mask[:1]) == 0
  assert _shared(tokens[:2], mask[:2]) == opening
  # A prompt that is all opening keeps a token of its own.
  assert _shared(*left_padded([begun, begun])) == (shared - 1) // 16 * 16
  got = generate(model, tokens, mask, max_new=6, eos_ids=())
  for row, prompt in zip(np.asarray(got.tokens_BxG), prompts, strict=True):
    alone = generate(model, *left_padded([prompt], 50), max_new=6, eos_ids=())
    np.testing.assert_array_equal(row, alone.tokens_BxG[0])


def test_draws_depend_on_key_row_and_step_alone(model):
  options = {'temperature': 1.0, 'key': jax.random.key(0)}
  first = texts(model, **options).tokens_BxG
  np.testing.assert_array_equal(first, texts(model, **options).tokens_BxG)
  fewer = texts(model, PROMPTS[:2], **options).tokens_BxG
  np.testing.assert_array_equal(first[:2], fewer)
  other = texts(model, **options | {'key': jax.random.key(1)}).tokens_BxG
  assert (np.asarray(first) != np.asarray(other)).any()
  cold = texts(model, **options | {'temperature': 1e-4}).tokens_BxG
  np.testing.assert_array_equal(cold, texts(model).tokens_BxG)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(model, temperature):
  n = 4000
  got = texts(
    model, [[3, 4]] * n, max_new=1, temperature=temperature, key=jax.random.key(0)
  )
  counts = np.bincount(np.asarray(got.tokens_BxG[:, 0]), minlength=40)
  logits = np.asarray(tiny.forward(model, np.asarray([[3, 4]], np.int32)))[0, -1]
  expected = n * np.asarray(jax.nn.softmax(logits / temperature))
  # Six standard deviations of a count, and one draw for the rarest.
  assert (abs(counts - expected) < 6 * np.sqrt(expected) + 1).all()


def test_a_text_ends_at_any_of_the_eos_ids(model):
  free = np.asarray(texts(model).tokens_BxG)
  ends = tuple(int(token) for token in free[:2, 2])  # of the first two texts
  got = texts(model, eos_ids=ends)
  for row, length, whole in zip(*map(np.asarray, got), free, strict=True):
    found = [i for i, token in enumerate(whole) if token in ends]
    assert length == (found[0] + 1 if found else 6)
    assert list(row) == [*whole[:length], *[0] * (6 - length)]


@pytest.mark.parametrize(
  ('change', 'text'),
  [
    ({'max_new': 0}, 'max_new 0: not above 0'),
    ({'max_new': 62}, '65 positions: max_position_embeddings is 64'),
    ({'temperature': -1.0}, 'temperature -1.0: not 0 or above'),
    ({'temperature': 1.0}, 'key: missing, and a temperature draws'),
  ],
)
def test_options_that_are_refused(model, change, text):
  with pytest.raises(InputError, match=text):
    texts(model, **change)


@pytest.mark.parametrize(
  ('tokens', 'mask', 'text'),
  [
    ([[1, 40]], [[1, 1]], 'tokens: not all are in the vocabulary of 40'),
    ([[1, -1]], [[1, 1]], 'tokens: not all are in the vocabulary of 40'),
    ([[1.0, 2.0]], [[1, 1]], 'tokens: float64 instead of integers'),
    ([[1, 2]], [[1, 0]], 'mask: prompts are padded on the left, and have a token'),
    ([[1, 2, 3]], [[1, 0, 1]], 'mask: prompts are padded on the left'),
    ([[1, 2]], [[0, 0]], 'mask: prompts are padded on the left, and have a token'),
    ([1, 2], [1, 1], r'shapes: tokens \(2,\), mask \(2,\)'),
    ([[1, 2]], [[1]], r'shapes: tokens \(1, 2\), mask \(1, 1\)'),
  ],
)
def test_prompts_that_are_refused(model, tokens, mask, text):
  with pytest.raises(InputError, match=text):
    generate(model, tokens, mask, max_new=1, eos_ids=())


def test_one_program_for_models_of_one_config(model):
  texts(model)
  programs = _generate._cache_size()
  texts(tiny.decoder(tiny.QWEN3, scale=0.2), [[1, 2], [3], [4]])
  assert _generate._cache_size() == programs


def test_left_padding():
  tokens, mask = left_padded([[1, 2], [3]], width=3)
  assert tokens.tolist() == [[0, 1, 2], [0, 0, 3]]
  assert mask.tolist() == [[False, True, True], [False, False, True]]
  assert left_padded([[1, 2], [3]])[0].shape == (2, 2)
  for prompts in ([[1], []], [[1, 2, 3, 4]], []):
    with pytest.raises(InputError, match='prompts: each needs 1 to'):
      left_padded(prompts, width=3)


def test_configs_without_the_needed_room_are_refused():
  small = tiny.decoder(dataclasses.replace(tiny.QWEN3, max_position_embeddings=5))
  with pytest.raises(InputError, match='9 positions: max_position_embeddings is 5'):
    texts(small)
