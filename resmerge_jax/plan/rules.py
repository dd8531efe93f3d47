"""Which rule a tensor falls under, and its family: two ordered tables, first match wins.

Both equal the name rules of the authors' release (case-insensitive substrings).
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from resmerge_jax.errors import InputError
from resmerge_jax.types import Family, TensorRef

Action = Literal['method', 'task_arithmetic', 'base']
ACTIONS = ('method', 'task_arithmetic', 'base')

EMBEDDING_OR_HEAD = r'embed_tokens|wte|lm_head|word_embeddings'
NORM = r'norm|ln_|layernorm'
ATTENTION = r'self_attn|\.attn\.|attention|q_proj|k_proj|v_proj|o_proj'
FFN = r'mlp|ffn|feed_forward|gate_proj|up_proj|down_proj'

FAMILIES: tuple[tuple[str, Family], ...] = (
  (ATTENTION, 'attention'),
  (FFN, 'ffn'),
  (NORM, 'norm'),
  (EMBEDDING_OR_HEAD, 'embed_lm_head'),
  ('', 'other'),
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """Tensors whose name matches `match` (regex, any case) and whose number of
  dimensions is in `ndim` (None: any) get `action`. `floating=False` is the rule for
  integers and booleans; all others are for floating tensors. `why` is printed.
  """

  match: str
  action: Action
  why: str
  ndim: tuple[int, ...] | None = None
  floating: bool = True

  def __post_init__(self) -> None:
    if self.action not in ACTIONS:
      raise InputError(
        f'rule {self.match!r}: action {self.action!r}, expected {" | ".join(ACTIONS)}'
      )
    if not self.floating and self.action != 'base':
      raise InputError(
        f'rule {self.match!r}: integers and booleans can only be copied',
        fix="set action='base'",
      )
    if not isinstance(self.match, str):
      raise InputError(f'rule: match {self.match!r}, expected a regular expression')
    if self.ndim is not None:
      ndim = (self.ndim,) if isinstance(self.ndim, int) else tuple(self.ndim)
      object.__setattr__(self, 'ndim', ndim)
    try:
      re.compile(self.match)
    except re.error as error:
      raise InputError(
        f'rule {self.match!r}: not a regular expression: {error}'
      ) from None

  def covers(self, tensor: TensorRef) -> bool:
    return (
      self.floating == tensor.is_float
      and (self.ndim is None or len(tensor.shape) in self.ndim)
      and re.search(self.match, tensor.name, re.IGNORECASE) is not None
    )


RELEASE_RULES: tuple[Rule, ...] = (
  Rule('', 'base', 'not floating point: copied from the base', floating=False),
  Rule(EMBEDDING_OR_HEAD, 'task_arithmetic', 'embedding or LM head'),
  Rule(NORM, 'task_arithmetic', 'normalisation'),
  Rule('', 'task_arithmetic', 'vector', ndim=(1,)),
  Rule('', 'method', 'matrix', ndim=(2,)),
  Rule('', 'task_arithmetic', 'neither vector nor matrix'),
)


def rules_from(entries: Sequence[Rule | Mapping[str, Any]]) -> tuple[Rule, ...]:
  """A rule table: rules, or mappings with their fields as a config file has them."""
  fields = {field.name for field in dataclasses.fields(Rule)}
  wrong = [
    f'rule {i}: got {sorted(entry)}'
    for i, entry in enumerate(entries)
    if not isinstance(entry, Rule) and not {'match', 'action'} <= set(entry) <= fields
  ]
  if wrong:
    raise InputError(
      'rules: wrong fields',
      wrong,
      fix=f'each rule has match, action and any of {", ".join(sorted(fields))}',
    )
  return tuple(
    entry
    if isinstance(entry, Rule)
    else Rule(**{'why': 'given in the config', **entry})
    for entry in entries
  )


def family_of(name: str) -> Family:
  """Attention beats ffn beats norm beats embedding; 'other' is what no pattern names."""
  return next(
    family for pattern, family in FAMILIES if re.search(pattern, name, re.IGNORECASE)
  )


def assign(tensors: Sequence[TensorRef], rules: Sequence[Rule]) -> dict[str, Rule]:
  """The rule of each tensor.

  Raises:
    InputError: tensors that no rule covers. Nothing falls through silently.
  """
  found = {
    tensor.name: next((rule for rule in rules if rule.covers(tensor)), None)
    for tensor in tensors
  }
  lost = [
    f'{t.name} {list(t.shape)} {t.dtype}' for t in tensors if found[t.name] is None
  ]
  if lost:
    raise InputError(
      'rules: no rule covers these tensors',
      lost,
      fix="end the table with a rule whose match is '' for floating tensors, and one "
      "with floating=False and action='base' for integers and booleans",
    )
  return {name: rule for name, rule in found.items() if rule is not None}


def traps(tensors: Sequence[TensorRef], rules: Mapping[str, Rule]) -> list[str]:
  """Warnings where the name rules do something a user may not expect."""
  groups: dict[str, list[str]] = {}
  for tensor in tensors:
    rule, matrix = rules[tensor.name], len(tensor.shape) == 2
    inside_word = re.search(
      r'[a-z]wte|wte[a-z]|[a-z0-9]_wte|wte_[a-z0-9]', tensor.name, re.I
    )
    if rule.action == 'method' and family_of(tensor.name) == 'other':
      note = 'matrices of no known family (position embeddings and task heads land here) go through the method as family other'
    elif rule.action == 'task_arithmetic' and matrix and rule.match == NORM:
      note = "matrices with 'norm' in their name follow task arithmetic, not the method"
    elif rule.action == 'task_arithmetic' and matrix and inside_word:
      note = "matrices with 'wte' inside a longer word count as embeddings and follow task arithmetic"
    elif rule.action == 'task_arithmetic' and len(tensor.shape) not in (1, 2):
      note = 'tensors that are neither vectors nor matrices follow task arithmetic (the released script refuses them)'
    else:
      continue
    groups.setdefault(note, []).append(tensor.name)
  return [
    f'{note}: {", ".join(names[:3])}'
    + (f' and {len(names) - 3} more' if len(names) > 3 else '')
    for note, names in groups.items()
  ]
