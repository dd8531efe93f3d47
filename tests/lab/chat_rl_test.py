"""GRPO of chat models on a tiny decoder: its gradient, and going on after a kill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resmerge_jax.errors import InputError
from resmerge_jax.lab import chat_rl
from resmerge_jax.lab.objectives import advantages, token_shares
from resmerge_jax.lab.recipe import ModelRecipe, group_recipe
from resmerge_jax.lab.resume import Kept
from resmerge_jax.models.decoder import Decoder

ENTROPY = [0, 1]


@pytest.fixture(scope='module')
def start():
  sizes = {'hidden_size': 16, 'intermediate_size': 24, 'layers': 1}
  return nnx.split(Decoder(ModelRecipe(**sizes).config(), nnx.Rngs(0)))


@pytest.fixture(autouse=True)
def _some_are_right(monkeypatch):
  """An untrained model is never right: every answer that begins with a low id is."""

  def matches(_, answers_QxG, __):
    return np.asarray(answers_QxG)[:, 0] < 25

  monkeypatch.setattr(chat_rl, 'matches', matches)


def train(start, file, steps=6, say=lambda _: None):
  made_by = {'seed': 0, 'rl': {'rate': 1e-3, 'steps': steps}}
  rl = {'rate': 1e-3, 'steps': steps, 'prompts': 2, 'samples': 3}
  recipe = group_recipe({'tasks': ('math',), 'rl': rl, 'check_prompts': 5})
  kept = Kept(file, made_by)
  return chat_rl.train_chat_rl(recipe, 'math', *start, ENTROPY, kept, say)


def test_the_gradient_is_that_of_whole_texts(start):
  """Against prompts repeated before each answer, in one pass without a cache."""
  graph, params = start
  prompt_1xP = np.array([[0, 0, 5, 9, 11]])  # two of padding
  drawn_NxG = jnp.array([[7, 1, 0, 0], [9, 8, 4, 1], [3, 3, 3, 3]])
  shares = token_shares(drawn_NxG, 1)
  weights = advantages(jnp.array([[1.0, 0.0, 0.0]])).reshape(-1, 1) * shares
  np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
  assert (shares[0] > 0).tolist() == [True, True, False, False]

  def loss(params):
    whole = jnp.concatenate([jnp.repeat(prompt_1xP, 3, axis=0), drawn_NxG], axis=1)
    # Zeros after an end are no padding: nothing that counts sees them.
    mask = jnp.arange(9) >= 2
    logits = nnx.merge(graph, params)(whole, jnp.broadcast_to(mask, whole.shape))
    logp = jax.nn.log_softmax(logits[:, 4:-1] / chat_rl._TEMPERATURE)
    found = jnp.take_along_axis(logp, drawn_NxG[..., None], axis=-1)[..., 0]
    return -(found * weights).sum()

  zeros = jax.tree.map(jnp.zeros_like, params)
  answered = chat_rl.Answered(prompt_1xP, drawn_NxG, weights)
  ours = chat_rl.add_gradient(zeros, params, answered, graph=graph)
  expected = jax.jit(jax.grad(loss))(params)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)  # float32 sums in another order


def test_a_killed_training_ends_as_one_that_was_not(start, tmp_path):
  params, record = train(start, tmp_path / 'a.npy')
  assert [entry['step'] for entry in record['curve']] == [1, 2, 3, 4, 5, 6]
  assert any(0 < entry['reward'] < 1 for entry in record['curve'])
  assert record['length'] > 0

  def killed(text):
    if 'step 6' in text:
      raise KeyboardInterrupt

  said = []
  with pytest.raises(KeyboardInterrupt):
    train(start, tmp_path / 'b.npy', say=killed)
  assert [path.name for path in tmp_path.glob('b*')] == ['b.npy']
  again, later = train(start, tmp_path / 'b.npy', say=said.append)
  assert said[0] == 'rl_math: continues after step 5'
  same = jax.tree.map(lambda a, b: bool((a == b).all()), params, again)
  assert all(jax.tree.leaves(same))
  rewards = [[e['reward'] for e in r['curve']] for r in (record, later)]
  assert rewards[0] == rewards[1]
  train(start, tmp_path / 'b.npy', steps=7)  # more steps go on from it


def test_the_model_that_is_stored_answers(start, tmp_path, monkeypatch):
  """Draws and gradients are of bfloat16 numbers, what is moved is not."""
  seen = []
  draw, add_gradient = chat_rl.draw, chat_rl.add_gradient

  def drawn(params, *args, **options):
    seen.append(params)
    return draw(params, *args, **options)

  def added(grads, params, *args, **options):
    seen.append(params)
    return add_gradient(grads, params, *args, **options)

  monkeypatch.setattr(chat_rl, 'draw', drawn)
  monkeypatch.setattr(chat_rl, 'add_gradient', added)
  params, _ = train(start, tmp_path / 'a.npy', steps=3)
  assert len(seen) > 3
  for tree in seen:
    for leaf in jax.tree.leaves(tree):
      np.testing.assert_array_equal(leaf, leaf.astype(jnp.bfloat16))
  moved = jax.tree.leaves(params)
  assert any((leaf != leaf.astype(jnp.bfloat16)).any() for leaf in moved)


def test_a_state_of_another_seed_is_refused(start, tmp_path):
  file = tmp_path / 'state.npy'
  train(start, file, steps=5)
  with pytest.raises(InputError, match=r'state\.npy: of another recipe or seed'):
    Kept(file, {'seed': 1, 'rl': {}}).read(chat_rl.begin(start[1], chat_rl.Adam(0.99)))


def test_the_share_of_equal_bfloat16_numbers():
  base = nnx.State({'a': jnp.ones(3), 'b': jnp.ones(1)})
  moved = nnx.State({'a': jnp.array([1.0, 1.001, 1.1]), 'b': jnp.ones(1)})
  assert chat_rl.same_bf16(moved, base) == 0.75  # the step at 1 is 0.0078
