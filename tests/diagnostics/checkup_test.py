"""Each finding of the check-up, on groups made to have it, and none on a sound one."""

import ml_dtypes
import numpy as np
import pytest

from resmerge_jax.diagnostics.checkup import Checked, check_up, jump
from resmerge_jax.diagnostics.diagnose import diagnose_sources
from resmerge_jax.diagnostics.measure import Settings, open_sources
from resmerge_jax.diagnostics.totals import totals_of
from tests import adapters, groups
from tests.spectra import spectrum_matrix

# One shape of matrix, so that all groups of as many experts share their programs.
Q = 'model.layers.0.self_attn.q_proj.weight'
SHAPE = (96, 80)
SIGMA = 0.05 * 0.9 ** np.arange(80)


def update(seed, sigma=SIGMA):
  return spectrum_matrix(np.random.default_rng(seed), *SHAPE, np.asarray(sigma))


def weights(*updates):
  """The base, and experts that add each of these to it."""
  rng = np.random.default_rng(0)
  base = {
    'model.embed_tokens.weight': rng.standard_normal((6, 80)).astype(np.float32),
    Q: 0.1 * rng.standard_normal(SHAPE).astype(np.float32),
  }
  return base, [{**base, Q: base[Q] + u} for u in updates]


def diagnosed(tmp_path, base, experts, **settings):
  group = groups.write(tmp_path, base, experts)
  opened = open_sources(group.base, group.experts, Settings(**settings))
  return diagnose_sources(opened, 'group')


def findings(tmp_path, *updates, **settings):
  found = diagnosed(tmp_path, *weights(*updates), **settings).findings
  for finding in found:
    for text in (finding.what, finding.consequence, finding.advice):
      assert text.endswith('.')
      assert '  ' not in text
  return {finding.code: finding for finding in found}


def test_a_sound_group_has_none(tmp_path):
  assert findings(tmp_path, update(1), update(2)) == {}


def test_another_base(tmp_path):
  shared = update(9, 3 * SIGMA)
  found = findings(tmp_path, update(1) + shared, update(2) + shared)
  assert set(found) == {'wrong-base'}
  assert found['wrong-base'].level == 'error'
  assert found['wrong-base'].what.startswith('e1 is closer to e0 than to the base')


def test_one_expert(tmp_path):
  found = findings(tmp_path, update(1))
  assert found['one-expert'].level == 'warning'


def test_the_same_expert_twice(tmp_path):
  found = findings(tmp_path, update(1), update(1))
  assert set(found) == {'duplicates'}
  assert found['duplicates'].what.startswith('e0 and e1 hold the same weights')


def test_an_expert_that_is_the_base(tmp_path):
  found = findings(tmp_path, update(1), np.zeros(SHAPE, np.float32))
  assert set(found) == {'unchanged'}
  assert found['unchanged'].what.startswith('e1 is equal to the base')


def test_opposite_experts(tmp_path):
  found = findings(tmp_path, update(1), -update(1) + update(2, 0.5 * SIGMA))
  assert found['opposite'].what == (
    'The updates of e0 and e1 point against each other (cosine -0.90).'
  )


def test_a_large_update(tmp_path):
  found = findings(tmp_path, update(1), update(2, 20 * SIGMA))
  assert set(found) == {'large-update'}
  assert found['large-update'].what.startswith('e1 moves the weights by ')


def test_a_low_rank(tmp_path):
  adapter = update(1, SIGMA[:8])
  found = findings(tmp_path, adapter, update(2))
  assert set(found) == {'lora-like'}
  assert 'numerical rank 8 or less in all 1 matrices' in found['lora-like'].what


def test_an_adapter(tmp_path):
  """Factors are formed for it, and measured as any update."""
  base, _ = weights()
  group = groups.write(tmp_path, base, [])
  module = Q.removesuffix('.weight')
  tensors = [adapters.factors(base, module, rank=4, seed=i, size=1e-3) for i in (1, 2)]
  experts = [
    adapters.write(tmp_path / f'a{i}', each, r=4, lora_alpha=8)
    for i, each in enumerate(tensors)
  ]
  opened = open_sources(group.base, experts, Settings())
  found = diagnose_sources(opened, 'adapters')
  assert [f.code for f in found.findings] == ['lora-like', 'lora-like']
  record = next(r for r in found.records if r['name'] == Q)
  want = [np.linalg.norm(adapters.merged(base, each)[Q] - base[Q]) for each in tensors]
  np.testing.assert_allclose(record['delta_norm'], want, rtol=1e-5)


def test_sparse_updates_are_not_taken_for_low_rank(tmp_path):
  keep = np.random.default_rng(3).random(SHAPE) < 0.01
  assert 'lora-like' not in findings(tmp_path, update(1) * keep, update(2))


def test_updates_of_the_head_s_rank(tmp_path):
  found = findings(tmp_path, update(1, SIGMA[:1]), update(2, SIGMA[:1]))
  assert found['erased'].level == 'error'
  assert found['erased'].tensors == (Q,)


def test_updates_below_the_step(tmp_path):
  found = findings(tmp_path, update(1, 1e-3 * SIGMA), update(2))
  assert set(found) == {'below-step'}
  assert 'of the entries that e0 changes move by less' in found['below-step'].what
  small = weights(update(1, 1e-3 * SIGMA), update(2))
  assert not diagnosed(tmp_path / '32', *small, output_dtype='float32').findings


def test_bfloat16_experts_are_not_below_it(tmp_path):
  base, experts = weights(update(1), update(2))
  stored = [
    {k: v.astype(ml_dtypes.bfloat16) for k, v in w.items()} for w in (base, *experts)
  ]
  assert not diagnosed(tmp_path, stored[0], stored[1:]).findings


def test_a_near_tie(tmp_path):
  tied = np.concatenate([SIGMA[:1] * 0.995, SIGMA[1:]])
  tied[1] = SIGMA[0]
  found = findings(tmp_path, update(1, tied), update(2))
  assert found['near-tie'].level == 'note'
  assert found['near-tie'].tensors == (Q,)


def test_the_edge_of_the_released_rule(tmp_path):
  """Residuals at right angles: the second's rows are a turned part of the first's."""
  u = np.linalg.qr(np.random.default_rng(4).standard_normal(SHAPE))[0]
  v = np.eye(80)
  first = (u[:, :40] * SIGMA[:40]) @ v[:40]
  second = (u[:, 40:] * SIGMA[:40]) @ v[40:]
  found = findings(tmp_path, first.astype(np.float32), second.astype(np.float32))
  assert found['release-edge'].tensors == (Q,)
  assert 'jumps by 7%' in found['release-edge'].consequence


@pytest.mark.parametrize(('n', 'percent'), [(2, 7.3), (3, 11.2), (4, 13.9), (5, 15.9)])
def test_the_jump_of_the_released_rule(n, percent):
  assert 100 * jump(n) == pytest.approx(percent, abs=0.05)


def test_what_rounding_took():
  record = {
    'name': 'x', 'family': 'ffn', 'rule': 'method', 'shape': [2, 2], 'layer': 0,
    'delta_norm': [3.0, 4.0], 'zero_fraction': [0.0, 0.0], 'update_norm': 2.0,
    'rounding_loss': 0.5,
  }  # fmt: skip
  totals = totals_of([record])
  (found,) = check_up(Checked(('a', 'b'), (record,), totals, 'bfloat16'))
  assert found.code == 'rounding-loss'
  assert found.what == (
    'Rounding to bfloat16 changed the merged update by 50% of its norm.'
  )
