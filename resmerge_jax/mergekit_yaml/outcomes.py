"""From what each tensor is to get to an ordered table of rules."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.plan.rules import LAYER, Rule, layer_of

Matched = frozenset[str]  # the filters that are part of a name
Place = tuple[Matched, int | None]  # and the number of its decoder layer, if any


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a tensor gets. `said`: mergekit's names and values, for the plan."""

  fields: tuple[tuple[str, Any], ...]
  weights: tuple[Any, ...] | None
  said: tuple[tuple[str, Any], ...] = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Block:
  """Rules for names that hold all of `matched`: by layer, and for all others."""

  matched: Matched
  by_layer: Mapping[int, Outcome]
  rest: Outcome

  def outcome(self, layer: int | None) -> Outcome:
    return self.rest if layer is None else self.by_layer.get(layer, self.rest)


def place_of(name: str, filters: Sequence[str]) -> Place:
  """Filters are parts of names, upper and lower case told apart."""
  return frozenset(text for text in filters if text in name), layer_of(name)


def blocks_for(wanted: Mapping[Place, Outcome], filters: Sequence[str]) -> list[Block]:
  """Blocks of which the first whose filters a name holds is right for it.

  A set of filters goes before its parts, so the first one is the name's own; blocks that
  a later one makes superfluous are left out.
  """
  sets = sorted(
    {matched for matched, _ in wanted},
    key=lambda matched: (-len(matched), sorted(map(filters.index, matched))),
  )
  blocks = [_block(matched, wanted) for matched in sets]
  for block in list(blocks):
    others = [other for other in blocks if other is not block]
    if all(_first(others, place) == outcome for place, outcome in wanted.items()):
      blocks = others
  return blocks


def _first(blocks: Sequence[Block], place: Place) -> Outcome | None:
  matched, layer = place
  return next((b.outcome(layer) for b in blocks if b.matched <= matched), None)


def _block(matched: Matched, wanted: Mapping[Place, Outcome]) -> Block:
  of_layer = {
    layer: outcome for (other, layer), outcome in wanted.items() if other == matched
  }
  outcomes = list(of_layer.values())
  rest = of_layer.get(None) or max(outcomes, key=outcomes.count)
  by_layer = {
    layer: outcome
    for layer, outcome in of_layer.items()
    if layer is not None and outcome != rest
  }
  return Block(matched, by_layer, rest)


def rules_for(
  blocks: Sequence[Block], filters: Sequence[str], method: str, default: Outcome
) -> list[tuple[Rule, Outcome]]:
  """The table, with what each rule stands for.

  A rule says only what differs from `default`, the merge's own.
  """
  rules = []
  outcomes = [o for b in blocks for o in (*b.by_layer.values(), b.rest)]
  for block in blocks:
    texts = [text for text in filters if text in block.matched]
    groups: dict[Outcome, list[int]] = {}
    for layer, outcome in sorted(block.by_layer.items()):
      groups.setdefault(outcome, []).append(layer)
    for outcome, layers in (*groups.items(), (block.rest, None)):
      differs = outcome.fields != default.fields
      rule = Rule(
        pattern(texts, layers),
        'method',
        _why(texts, layers, outcome, outcomes),
        method=(method, dict(outcome.fields)) if differs else None,
        weights=outcome.weights if outcome.weights != default.weights else None,
      )
      rules.append((rule, outcome))
  return rules


def pattern(texts: Sequence[str], layers: Sequence[int] | None) -> str:
  """A regular expression for names with all these parts, in one of these layers."""
  exact = [f'(?-i:{re.escape(text)})' for text in texts]
  if layers is None:
    return exact[0] if len(exact) == 1 else ''.join(f'(?=.*{text})' for text in exact)
  ahead = ''.join(f'(?=.*{text})' for text in exact)
  in_layers = f'{LAYER}(?:{"|".join(map(str, layers))})\\.'
  return f'^{ahead}.*?{in_layers}' if exact else in_layers


def _why(
  texts: Sequence[str],
  layers: Sequence[int] | None,
  outcome: Outcome,
  outcomes: Sequence[Outcome],
) -> str:
  where = [' and '.join(texts)] if texts else []
  if layers is not None:
    where.append(f'layers {", ".join(map(str, layers))}')
  varying = [
    f'{name} {_text(value)}'
    for name, value in outcome.said
    if any(dict(other.said)[name] != value for other in outcomes)
  ]
  where_text = ', '.join(where) or 'every other tensor' if varying else 'every tensor'
  return ': '.join([where_text, *([', '.join(varying)] if varying else [])])


def _text(value: Any) -> str:
  if isinstance(value, tuple):
    return f'[{", ".join(map(_text, value))}]'
  return str(value).lower() if isinstance(value, bool) else f'{value:.4g}'


def check_rules(
  rules: Sequence[tuple[Rule, Outcome]], wanted: Mapping[str, Outcome]
) -> None:
  """Raises InputError for names that the regular expressions put elsewhere.

  Which are names of two lists of blocks, one inside the other.
  """
  wrong = [
    name
    for name, outcome in wanted.items()
    if next(o for r, o in rules if re.search(r.match, name, re.I)) != outcome
  ]
  if wrong:
    raise InputError(
      'parameters: filters and layers of these tensors cannot be told apart',
      wrong,
      fix='give these parameters as single numbers',
    )
