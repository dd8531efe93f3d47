"""The relaxed merge and its gradient, the entropy, learning on a tiny group."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.adarank import learn as arithmetic
from resmerge_jax.adarank import run
from resmerge_jax.adarank.group import Opened, _factors, open_experts
from resmerge_jax.adarank.learn import Factors, Known, Learned
from resmerge_jax.adarank.prompts import batches
from resmerge_jax.adarank.run import Outcome, Settings, curve_csv, learn
from resmerge_jax.checkpoint.mask_file import mask_file_bytes
from resmerge_jax.config import MergeConfig
from resmerge_jax.errors import InputError
from resmerge_jax.methods.rank_mask import RankMask
from tests.adarank import small
from tests.methods import groups
from tests.models import tiny
from tests.oracles import adarank

SETTINGS = Settings(steps=30, batch=3, learning_rate=0.02, seed=1)


def silent(text: str) -> None:
  del text


def known_matrix(rows: int, cols: int) -> tuple[np.ndarray, np.ndarray, Known]:
  delta_NxRxC = groups.experts(small.N, rows, cols, 0.7)
  base_RxC = np.random.default_rng(1).standard_normal((rows, cols), np.float32)
  factors = _factors(base_RxC, base_RxC + delta_NxRxC)
  # Differences as they are stored: base + delta was rounded.
  stored_NxRxC = np.float64(base_RxC + delta_NxRxC) - np.float64(base_RxC)
  return base_RxC, stored_NxRxC, Known({'w': base_RxC}, {'w': factors})


@pytest.mark.parametrize('shape', [(12, 9), (9, 12)])
def test_merged_weights_and_their_gradient_agree_with_the_oracle(shape):
  base_RxC, delta_NxRxC, known = known_matrix(*shape)
  rng = np.random.default_rng(2)
  m_NxS = rng.standard_normal((small.N, 9), np.float32)
  lambda_N = np.array([0.7, -0.4], np.float32)
  slope_RxC = rng.standard_normal(shape, np.float32)

  def loss(learned: Learned) -> tuple[jax.Array, jax.Array]:
    weights = arithmetic.merged(known, learned)['w']
    return (weights * slope_RxC).sum(), weights

  learned = Learned({'w': m_NxS}, {'w': lambda_N})
  grads, weights = groups.compiled(jax.grad(loss, has_aux=True))(learned)
  want = adarank.merged(base_RxC, delta_NxRxC, m_NxS, lambda_N)
  np.testing.assert_allclose(weights, want, atol=1e-6)  # float32 of numbers of about 1
  of_m, of_lambda = adarank.gradients(
    slope_RxC, delta_NxRxC, m_NxS, lambda_N, arithmetic.TEMPERATURE
  )
  # float32 sums of a hundred terms of about 1; m's are forty times smaller.
  np.testing.assert_allclose(grads.lambda_N['w'], of_lambda, atol=1e-5)
  np.testing.assert_allclose(grads.m_NxS['w'], of_m, atol=1e-6)


def test_straight_through():
  m = jnp.array([-3.0, -0.1, 0.0, 0.1, 3.0])
  np.testing.assert_array_equal(arithmetic.straight_through(m), [0, 0, 0, 1, 1])
  slope = jax.vmap(jax.grad(arithmetic.straight_through))(m)
  soft = 1 / (1 + np.exp(-np.asarray(m) / 10))
  np.testing.assert_allclose(slope, soft * (1 - soft) / 10, rtol=1e-6)


@pytest.mark.parametrize('positions', ['all', 'last'])
def test_entropies_are_those_of_the_prompts_alone(positions):
  model = tiny.decoder(small.CONFIG)
  forward = groups.compiled(lambda model, ids: model(ids))
  batch = next(batches(small.prompt_ids(), 3, seed=0))
  entropies = groups.compiled(arithmetic.entropies, static_argnames='positions')
  found_N = entropies(model, batch, positions=positions)
  for i in range(small.N):
    parts = []
    for ids, length in zip(batch.tokens_NxBxT[i], batch.lengths_NxB[i], strict=True):
      logits = np.asarray(forward(model, ids[None, :length])[0], np.float64)
      p = np.exp(logits - logits.max(-1, keepdims=True))
      p /= p.sum(-1, keepdims=True)
      entropy_T = -(p * np.log(p)).sum(-1)
      parts.append(entropy_T if positions == 'all' else entropy_T[-1:])
    # float32 logits of about 1
    np.testing.assert_allclose(found_N[i], np.concatenate(parts).mean(), rtol=1e-5)


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> list[str]:
  return small.write_group(tmp_path_factory.mktemp('group'))


def opened(folders: list[str]) -> Opened:
  return open_experts(folders[0], folders[1:], None)


@pytest.fixture(scope='module')
def outcome(folders) -> Outcome:
  return learn(opened(folders), small.prompt_ids(), SETTINGS, None, silent)


def test_entropy_falls(outcome):
  means = [report.entropy_N.mean() for report in outcome.curve]
  assert len(means) == SETTINGS.steps
  # Batches differ by about a tenth of what is gained.
  assert np.mean(means[-5:]) < np.mean(means[:5]) - 0.02
  assert outcome.curve[0].kept == 1
  assert 0 < outcome.curve[-1].kept < 1


def test_the_same_seed_gives_the_same_and_devices_change_nothing(
  folders, outcome, monkeypatch
):
  settings = dataclasses.replace(SETTINGS, steps=4)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 1)
  lines: list[str] = []
  again = learn(opened(folders), small.prompt_ids(), settings, None, lines.append)
  for one, many in zip(again.curve, outcome.curve, strict=False):
    # Sums in another order, in float32.
    np.testing.assert_allclose(one.entropy_N, many.entropy_N, rtol=1e-4)
  assert lines[0].startswith('needs ')
  assert 'for the base, all components of all experts and a batch' in lines[0]
  assert lines[-1].startswith('step 4: entropy ')
  table = curve_csv(again, small.EXPERTS).splitlines()
  assert table[0] == 'step,entropy,entropy_math,entropy_code,kept'
  assert len(table) == 1 + settings.steps
  assert table[1].split(',')[-1] == '1'


def test_the_streamed_merge_is_the_model_that_was_learned(folders, outcome, tmp_path):
  path = tmp_path / 'masks.safetensors'
  path.write_bytes(mask_file_bytes(small.EXPERTS, outcome.masks(), outcome.lambdas()))
  config = MergeConfig(
    base=folders[0],
    experts=folders[1:],
    method=RankMask(masks=str(path)),
    output_dtype='float32',
  )
  streamed = resmerge_jax.load_merged(config)
  learned = arithmetic.merged(outcome.known, outcome.learned)
  assert streamed.keys() == learned.keys()
  for name, array in learned.items():
    # float32 factors and products here, float64 there; weights of about 1
    np.testing.assert_allclose(streamed[name], array, atol=2e-6, err_msg=name)


def test_memory_is_refused_before_a_weight_is_read(folders, monkeypatch):
  sizes = types.SimpleNamespace(
    argument_size_in_bytes=300,
    temp_size_in_bytes=200,
    output_size_in_bytes=100,
    alias_size_in_bytes=100,
  )
  program = types.SimpleNamespace(memory_analysis=lambda: sizes)
  monkeypatch.setattr(run, '_compiled', lambda *args: program)  # noqa: ARG005
  monkeypatch.setattr(run, 'load_known', None)
  message = r'a step needs 3\.91 KiB of memory, 2\.34 KiB of it .*; there are 3\.91 KiB'
  with pytest.raises(InputError, match=message):  # on eight devices
    learn(opened(folders), small.prompt_ids(), SETTINGS, 3999, silent)


def test_the_start_is_rank_mask(folders):
  model = opened(folders)
  shapes = {'w': Factors(jnp.zeros((2, 4, 3)), jnp.zeros((2, 3, 3))), 'v': jnp.zeros(2)}
  learned = arithmetic.start(shapes, small.N, {'w': 2}, 0.3)
  np.testing.assert_array_equal(learned.m_NxS['w'], np.float32([[0.1, 0.1, -0.1]] * 2))
  np.testing.assert_array_equal(learned.lambda_N['v'], np.float32([0.3, 0.3]))
  assert learned.m_NxS.keys() == {'w'}
  assert len(model.ranks) == 7


def test_batches_go_round_all_prompts():
  drawn = batches([[np.int32([k + 1]) for k in range(4)]], 3, seed=0)
  seen = np.concatenate([next(drawn).tokens_NxBxT.ravel() for _ in range(4)])
  for start in range(0, 12, 4):
    assert sorted(seen[start : start + 4]) == [1, 2, 3, 4]


def test_settings():
  with pytest.raises(InputError, match='steps: got 0, expected more than 0'):
    Settings(steps=0, learning_rate=0.1)
  with pytest.raises(InputError, match="positions: got 'first', expected all or last"):
    Settings(positions='first')
  with pytest.raises(InputError, match='rank_ratio: got 2'):
    Settings(rank_ratio=2)
