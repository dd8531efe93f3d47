"""Which rule a tensor falls under, and its family: two ordered tables, first match wins.

For dense models both equal the name rules of the authors' release (case-insensitive
substrings). Mixtures of experts, which it does not know, have rules of their own.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from resmerge_jax.checkpoint.names import BUFFER
from resmerge_jax.errors import InputError
from resmerge_jax.types import Family, TensorRef

Action = Literal['method', 'task_arithmetic', 'base']
ACTIONS = ('method', 'task_arithmetic', 'base')

EMBEDDING_OR_HEAD = r'embed_tokens|wte|lm_head|word_embeddings'
NORM = r'norm|ln_|layernorm'
ATTENTION = r'self_attn|\.attn\.|attention|q_proj|k_proj|v_proj|o_proj'
FFN = r'mlp|ffn|feed_forward|gate_proj|up_proj|down_proj|\bexperts\b|_moe\b|\bmoe\b'
# A router scores tokens for experts; all of one model mean the same scores.
ROUTER = (
  r'(?:^|\.)router(?:\.|$)|\.(?:mlp|ffn|feed_forward|\w*moe)\.gate\.'
  r'|shared_expert_gate|e_score_correction_bias'
)
FUSED = r'\bexperts\b|_moe\b|\bmoe\b'  # where one tensor holds all experts of a layer
FUSED_BIAS = r'\bexperts\b.*bias$'
LAYER = r'(?:^|\.)(?:layers|h|blocks|block)\.'  # what stands before a layer's number

FAMILIES: tuple[tuple[str, Family], ...] = (
  (ROUTER, 'router'),
  (ATTENTION, 'attention'),
  (FFN, 'ffn'),
  (NORM, 'norm'),
  (EMBEDDING_OR_HEAD, 'embed_lm_head'),
  ('', 'other'),
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """Tensors whose name matches `match` (regex, any case) and whose number of
  dimensions is in `ndim` (None: any) and whose family is `family` (None: any) get
  `action`. `floating=False` is the rule for integers and booleans; all others are for
  floating tensors. `why` is printed.

  `method`: name and parameters of another method than the merge's, for these tensors.
  `weights`: one per expert, in the place of the merge's.
  `batch`: the first axis of these tensors counts matrices (of two dimensions: vectors),
  each of which is merged by itself.
  """

  match: str
  action: Action
  why: str
  ndim: tuple[int, ...] | None = None
  floating: bool = True
  family: Family | None = None
  method: tuple[str, Any] | None = None
  weights: tuple[Any, ...] | None = None
  batch: bool = False

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
    if self.action != 'method' and self.method is not None:
      raise InputError(
        f'rule {self.match!r}: it has a method, but action {self.action!r}',
        fix="set action='method'",
      )
    if self.family is not None and self.family not in dict(FAMILIES).values():
      known = ' | '.join(family for _, family in FAMILIES)
      raise InputError(f'rule {self.match!r}: family {self.family!r}, expected {known}')
    if not isinstance(self.match, str):
      raise InputError(f'rule: match {self.match!r}, expected a regular expression')
    if self.ndim is not None:
      ndim = (self.ndim,) if isinstance(self.ndim, int) else tuple(self.ndim)
      object.__setattr__(self, 'ndim', ndim)
    if self.batch and (self.action != 'method' or min(self.ndim or (0,)) < 2):
      raise InputError(
        f'rule {self.match!r}: batch needs action and ndim that suit it',
        fix="set action='method', and ndim=3 (matrices) or ndim=2 (vectors)",
      )
    if self.weights is not None:
      object.__setattr__(self, 'weights', as_weights(self.weights))
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
      and (self.family is None or family_of(tensor.name) == self.family)
      and re.search(self.match, tensor.name, re.IGNORECASE) is not None
    )

  def splits(self, tensor: TensorRef) -> bool:
    """Whether the tensor is merged part by part."""
    return self.batch and tensor.size > 0

  def matrices(self, tensor: TensorRef) -> tuple[str, ...]:
    """What is merged by itself: the tensor, or its parts, by name."""
    return tensor.part_names if self.splits(tensor) else (tensor.name,)


_COPIED = Rule('', 'base', 'not floating point: copied from the base', floating=False)
_BUFFER = Rule(
  BUFFER, 'base', 'buffer, computed from config.json: copied from the base'
)
_ROUTER = Rule(
  ROUTER, 'task_arithmetic', 'router: rows compete for tokens, one per expert'
)
_FUSED_BIAS = Rule(FUSED_BIAS, 'task_arithmetic', 'biases of fused experts', ndim=(2,))
_FUSED = Rule(FUSED, 'method', 'fused experts: each a matrix', ndim=(3,), batch=True)
_EACH_BIAS = Rule(
  FUSED_BIAS, 'method', 'biases of fused experts: each a vector', ndim=(2,), batch=True
)
ABSENT = Rule('', 'base', 'no expert has it: copied from the base')
RELEASE_RULES: tuple[Rule, ...] = (
  _COPIED,
  _BUFFER,
  Rule(EMBEDDING_OR_HEAD, 'task_arithmetic', 'embedding or LM head'),
  Rule(NORM, 'task_arithmetic', 'normalisation'),
  _ROUTER,
  _FUSED_BIAS,
  Rule('', 'task_arithmetic', 'vector', ndim=(1,)),
  Rule('', 'method', 'matrix', ndim=(2,)),
  _FUSED,
  Rule('', 'task_arithmetic', 'neither vector nor matrix'),
)

SCOPES: dict[str, tuple[Rule, ...]] = {
  'hidden': RELEASE_RULES,
  'matrices': (
    _COPIED,
    _BUFFER,
    _ROUTER,
    _FUSED_BIAS,
    Rule('', 'method', 'matrix', ndim=(2,)),
    _FUSED,
    Rule('', 'task_arithmetic', 'no matrix'),
  ),
  'all': (
    _COPIED,
    _BUFFER,
    _FUSED,
    _EACH_BIAS,
    Rule('', 'method', 'every floating tensor'),
  ),
}


def as_weights(weights: Sequence[Any]) -> tuple[Any, ...]:
  """One per expert: a number, or a list of them spread over the depth of the model.

  Raises:
    InputError: anything else, or a number that is not finite.
  """
  spread = [
    tuple(w) if isinstance(w, Sequence) and not isinstance(w, str) else w
    for w in weights
  ]
  numbers = [x for w in spread for x in (w if isinstance(w, tuple) else (w,))]
  if () in spread or not all(
    isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    for x in numbers
  ):
    raise InputError(
      f'weights: got {list(weights)}, expected finite numbers, or lists of them'
    )
  return tuple(spread)


def weights_at(weights: Sequence[Any], depth: float) -> tuple[float, ...]:
  """The weights of a tensor; `depth` runs from 0 (first decoder layer) to 1 (last).

  A list is interpolated linearly: its entries lie at equal distances of depth.
  """
  return tuple(_spread(w, depth) if isinstance(w, tuple) else float(w) for w in weights)


def _spread(values: tuple[float, ...], depth: float) -> float:
  place = depth * (len(values) - 1)
  before = min(int(place), max(len(values) - 2, 0))
  after = min(before + 1, len(values) - 1)
  return values[before] + (place - before) * (values[after] - values[before])


def layer_of(name: str) -> int | None:
  """Number of the decoder layer a tensor belongs to; None outside them.

  The first list of blocks counts: `layers.5.mlp.experts.0` is in layer 5.
  """
  found = _in_layers(name)
  return int(found[1]) if found else None


def _in_layers(name: str) -> re.Match[str] | None:
  return re.search(rf'{LAYER}(\d+)\.', name)


def layer_number(name: str) -> int:
  """As `layer_of`, in a number: -1 outside the decoder layers."""
  layer = layer_of(name)
  return -1 if layer is None else layer


@functools.lru_cache(maxsize=8)
def layer_counts(names: tuple[str, ...]) -> dict[str, int]:
  """Layers of each list of layers, by what stands before it: a vision tower has its own.

  Under '' are those of the longest list.
  """
  counts = {'': 0}
  for name in names:
    if found := _in_layers(name):
      for before in ('', f'{name[: found.start()]}.'):
        counts[before] = max(counts.get(before, 0), 1 + int(found[1]))
  return counts


def layer_count(counts: Mapping[str, int], name: str) -> int:
  """Layers of the list that the tensor is in; of the longest, outside of any."""
  found = _in_layers(name)
  return counts[f'{name[: found.start()]}.' if found else '']


def depth_of(name: str, n_layers: int) -> float:
  """0 at the first decoder layer and for embeddings, 1 at the last and for what follows."""
  layer = layer_of(name)
  if layer is None:
    return 0.0 if re.search('embed|wte|wpe', name, re.IGNORECASE) else 1.0
  return layer / max(n_layers - 1, 1)


def is_hidden(tensor: TensorRef) -> bool:
  """Whether the release's table gives this tensor to a method of matrices."""
  return assign([tensor], RELEASE_RULES)[tensor.name].action == 'method'


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
