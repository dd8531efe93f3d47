"""Adapters whose rank is small for their method: warned of, and merged by what is there."""

import numpy as np
import pytest

import resmerge_jax
from resmerge_jax.methods.iso import IsoC
from resmerge_jax.methods.iso_cts import IsoCts
from resmerge_jax.methods.table import method_of
from resmerge_jax.methods.tsv import Tsv
from resmerge_jax.pipeline.prepare import prepare
from tests import adapters, groups
from tests.lora_group import BASE, EXPERTS, FLOAT32, UP, Q, float32, lora, write_group
from tests.oracles import spectral


@pytest.fixture(scope='module')
def adapter_group(tmp_path_factory) -> groups.Group:
  return write_group(tmp_path_factory.mktemp('group'))


def test_ranks_that_resmerge_takes_away_are_warned_of(adapter_group, tmp_path):
  one = adapters.write(tmp_path / 'one', lora(4, 1), r=1)
  group = adapter_group._replace(experts=(one, adapter_group.experts[1]))
  warning = (
    "expert 'one': 4 of its 4 updates are of rank 1, and the method takes the leading 1 "
    'off each update as its head (head_rank): nothing is left of them, such as '
    f'{UP.format(0)}.weight; merge adapters of larger rank, or by another method '
    '(task_arithmetic)'
  )
  plan = prepare(groups.config_of(group, tmp_path / 'x')).plan
  assert [w for w in plan.warnings if 'head_rank' in w] == [warning]
  for method, n in (
    (resmerge_jax.ResMerge(head_rank=9), 2),  # and the other adapter, of rank 9
    (resmerge_jax.ResMerge(backbone='none'), 0),
    (groups.MEAN, 0),
  ):
    plan = prepare(groups.config_of(group, tmp_path / 'x', method=method)).plan
    assert len([w for w in plan.warnings if 'head_rank' in w]) == n
  merged = groups.merge(
    adapter_group._replace(experts=(one,)), tmp_path / 'out', **FLOAT32
  )
  # as the warning says: rounding is all that is left
  for name, value in groups.load(merged.output).items():
    np.testing.assert_array_equal(value, float32(BASE)[name])


def test_methods_of_whole_spectra_warn_of_small_ranks(adapter_group, tmp_path):
  def found(method, experts) -> list[str]:
    group = adapter_group._replace(experts=experts)
    plan = prepare(groups.config_of(group, tmp_path / 'x', method=method)).plan
    return [w for w in plan.warnings if 'ill-posed' in w]

  small = adapter_group.experts[:2]
  warning = (
    'IsoC is ill-posed on 4 matrices that LoRA adapters change, such as '
    f'{UP.format(0)}.weight (6 directions of 64 in all): directions that no update has '
    'get no weight, so that the update is shorter than the method means it to be; '
    'another method (resmerge, task_arithmetic) has no such rule'
  )
  assert found(IsoC(), small) == [warning]
  (tsv,) = found(Tsv(), small)  # the second has no update of layer 0
  assert tsv.startswith('Tsv is ill-posed on 4 matrices')
  assert '.weight (rank 0 where 32 triplets of each are taken)' in tsv
  assert found(groups.MEAN, small) == []
  full = adapters.write(tmp_path / 'full', lora(4, 64), r=64)
  assert found(IsoC(), (*small, full)) == []
  assert found(Tsv(), (full,)) == []


@pytest.mark.parametrize('method', [IsoC(), Tsv(), IsoCts()])
def test_rounded_products_give_whole_spectra_no_directions(
  adapter_group, tmp_path, method
):
  """What float32 leaves of a product beside its rank is smaller than 1e-6 of it."""
  group = adapter_group._replace(experts=adapter_group.experts[::2])
  merged = groups.merge(group, tmp_path / 'out', method=method, **FLOAT32).output
  base = float32(BASE)
  for name in (f'{UP.format(0)}.weight', f'{Q.format(1)}.weight'):
    parts = [
      spectral.thin_svd(adapters.merged(BASE, EXPERTS[expert])[name] - base[name])
      for expert in ('e0', 'e2')
    ]
    u, sigma, v = (np.hstack([part[i][..., :6] for part in parts]) for i in range(3))
    short = min(base[name].shape)
    whole = spectral.thin_svd(u * sigma @ v.T)
    want = {
      'iso_c': whole[1].sum() / short * whole[0][:, :12] @ whole[2][:, :12].T,
      'tsv': spectral.polar(u) * sigma @ spectral.polar(v).T,
      # All 12 directions are common ones, and none is left to an expert.
      'iso_cts': whole[1].sum() / short * whole[0][:, :12] @ whole[2][:, :12].T,
    }[method_of(method).name]
    got = groups.load(merged)[name] - base[name]
    assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(want)
  branches = {r['name']: r.get('branch') for r in groups.records(merged)}
  assert branches[f'{UP.format(0)}.weight'] == 'ill_posed'
