"""What is computed of one step: a program, or for a sweep one per setting that differs.

Settings that would compute the same share a program's result. Of the others the first
solves the heads, of all ranks at once, and measures their inner products. Those after it
take both from the device: what differs between them is then arithmetic on a few numbers
(pipeline/coefficients.py), and one program applies the coefficients of all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from resmerge_jax.methods.base import Context
from resmerge_jax.methods.table import method_of
from resmerge_jax.pipeline.kernel_spec import KernelSpec


@dataclasses.dataclass(frozen=True)
class Turn:
  """A program `spec` run on a staged step, whose result is the output of `settings`.

  None: the base's bytes are copied. `own`: what would be run for these settings alone.
  `context(layers)`: what methods know beside the weights. `heads_of`, `measured_of`:
  places, among the turns of the step, of those that lend it heads, or inner products.
  """

  spec: KernelSpec | None
  own: KernelSpec | None
  context: Callable[[int], Context]
  seed: int
  settings: tuple[int, ...] = (0,)
  heads_of: int | None = None
  measured_of: int | None = None


class Wanted(NamedTuple):
  """What one setting of a sweep computes of a step; `key` tells equal ones."""

  spec: KernelSpec | None
  context: Callable[[int], Context]
  seed: int
  key: object


def turns_of(wanted: Sequence[Wanted], needed: Sequence[bool]) -> tuple[Turn, ...]:
  """The turns of one step for all settings of a sweep, in the order of the settings.

  Args:
    wanted: per setting.
    needed: whether a setting still has to write the step. Turns without such a setting
      stay where others take something from them: who lends decides about last bits.
  """
  settings: dict[object, list[int]] = {}
  for i, each in enumerate(wanted):
    settings.setdefault(each.key, []).append(i)
  lenders: dict[object, int] = {}
  turns: list[Turn] = []
  for members in settings.values():
    spec, context, seed, _ = wanted[members[0]]
    here = tuple(i for i in members if needed[i])
    turn = Turn(spec, spec, context, seed, here)
    turns.append(turn if spec is None else _borrowing(turn, spec, turns, lenders))
  used: set[int | None] = set()
  for place in reversed(range(len(turns))):
    if turns[place].settings or place in used:
      used |= {turns[place].heads_of, turns[place].measured_of}
  kept = [n for n, turn in enumerate(turns) if turn.settings or n in used]
  return tuple(_renumbered(turns[n], n in used, kept) for n in kept)


def _borrowing(
  turn: Turn, spec: KernelSpec, before: Sequence[Turn], lenders: dict[object, int]
) -> Turn:
  """The turn with what it takes from those `before` it; notes what it may lend."""
  if not spec.head_rank:
    return turn
  place = len(before)
  solved = turn.seed, spec.solved
  heads_of: int | None = lenders.setdefault(solved, place)
  if heads_of == place:
    heads_of = None
  else:
    spec = dataclasses.replace(spec, head_given=True, ranks=())
  measured_of, refit = None, method_of(spec.params).refit
  if refit is not None and not spec.post:  # a post may need more than coefficients
    fields = tuple(getattr(spec.params, name) for name in refit.measures)
    measured = *solved, type(spec.params), spec.head_rank, fields
    lender = lenders.setdefault(measured, place)
    if lender != place:
      measured_of, shared = lender, before[lender].own
      assert shared is not None
      spec = _applying(spec, shared)
  return dataclasses.replace(
    turn, spec=spec, heads_of=heads_of, measured_of=measured_of
  )


def _applying(spec: KernelSpec, lender: KernelSpec) -> KernelSpec:
  """The program for given coefficients: one for all that take from this lender."""
  n, k = spec.n_experts, spec.head_rank
  found = (('a_N', (n,), 'float32'), ('w_T', (n * k,), 'float32'), *spec.found)
  return dataclasses.replace(
    spec, params=lender.params, update_given=True, found=tuple(sorted(found))
  )


def _renumbered(turn: Turn, lends: bool, kept: Sequence[int]) -> Turn:
  """The turn with its lenders' places among those that are kept."""
  spec = turn.spec
  if spec is None:
    return turn
  heads_of, measured_of = (
    None if place is None else kept.index(place)
    for place in (turn.heads_of, turn.measured_of)
  )
  return dataclasses.replace(
    turn,
    spec=dataclasses.replace(spec, lends=lends),
    heads_of=heads_of,
    measured_of=measured_of,
  )
