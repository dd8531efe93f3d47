"""Which program of a sweep takes what from which."""

import dataclasses

from resmerge_jax.methods.layerwise import Liti
from resmerge_jax.methods.resmerge import ResMerge
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.pipeline.kernel_spec import KernelSpec
from resmerge_jax.pipeline.turns import Turn, Wanted, turns_of

SPEC = KernelSpec(ResMerge(), 'ffn', 2, 90, 80, 3, 'BF16', 'BF16', 'BF16')


def wanted(params, seed: int = 0, ranks: tuple[int, ...] = (), **changes) -> Wanted:
  spec = dataclasses.replace(SPEC, params=params, ranks=ranks, **changes)
  return Wanted(spec, lambda layers: layers, seed, (spec, seed))


def turns(*settings: Wanted, needed: tuple[bool, ...] = ()) -> tuple[Turn, ...]:
  return turns_of(settings, needed or (True,) * len(settings))


def test_equal_settings_share_a_program_and_copies_need_none():
  one = wanted(TaskArithmetic())
  (turn,) = turns(one, one)
  assert turn.settings == (0, 1)
  assert turn.spec == turn.own == one.spec
  copied = Wanted(None, one.context, 0, None)
  (turn,) = turns(copied, copied)
  assert turn.spec is None
  assert turn.settings == (0, 1)


def test_a_single_setting_is_the_merge_by_itself():
  (turn,) = turns(one := wanted(ResMerge()))
  assert turn.spec == turn.own == one.spec
  assert turn.heads_of is turn.measured_of is None


def test_one_rank_one_program_for_all_coefficients():
  first, *others = turns(*(wanted(ResMerge(rho=rho)) for rho in (0.1, 0.2, 0.3)))
  assert first.spec.lends
  assert len({turn.spec for turn in others}) == 1
  for turn in others:
    assert turn.spec.head_given
    assert turn.spec.update_given
    assert turn.spec.params == first.own.params
    assert (turn.heads_of, turn.measured_of) == (0, 0)
  assert [turn.own.params.rho for turn in others] == [0.2, 0.3]


def test_ranks_variants_posts_and_seeds():
  ranks = (1, 2)
  found = turns(
    wanted(ResMerge(), ranks=ranks),
    wanted(ResMerge(head_rank=2), ranks=ranks),
    wanted(ResMerge(variant='release'), ranks=ranks),
    wanted(ResMerge(head_rank=2, rho=1.0), ranks=ranks),
    wanted(ResMerge(), ranks=ranks, post=(Liti(eta=0.5),)),
    wanted(ResMerge(), ranks=ranks, seed=1),
  )
  assert [turn.heads_of for turn in found] == [None, 0, 0, 0, 0, None]
  assert [turn.measured_of for turn in found] == [None, None, None, 1, None, None]
  assert [turn.spec.lends for turn in found] == [True, True, False, False, False, False]
  assert [turn.spec.ranks for turn in found] == [ranks, (), (), (), (), ranks]
  assert found[0].spec.solved == ranks
  assert found[1].spec.solved == (2,)


def test_who_lends_stays_though_its_output_is_complete():
  settings = [wanted(ResMerge(rho=rho)) for rho in (0.1, 0.2, 0.3)]
  first, last = turns(*settings, needed=(False, False, True))
  assert (first.settings, last.settings) == ((), (2,))
  assert last.heads_of == last.measured_of == 0
  (only,) = turns(*settings, needed=(True, False, False))
  assert only.spec == settings[0].spec
