"""Where the tensors of a model lie in a tree, and which tensors lie in its leaves."""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.trees.tree import Layout, Place, Rule
from resmerge_jax.types import TensorRef

_HEADS = {'N': 'num_attention_heads', 'K': 'num_key_value_heads'}
USE_HF = 'choose --orbax_layout=hf, which any model can have'


def places(
  layout: Layout, tensors: Mapping[str, TensorRef], config: Mapping[str, Any]
) -> dict[str, Place]:
  """Where each tensor lies in the tree.

  Args:
    config: the model's config.json, of which the numbers of heads are needed.

  Raises:
    InputError: the table is not true of this model, or lacks a tensor of it; a tensor
      that cannot be split; a stack with holes.
  """
  if not layout.rules:
    return {name: _as_it_is(name, ref.shape) for name, ref in tensors.items()}
  check_model(layout, config)
  found: dict[str, tuple[Rule, dict[str, int], dict[str, int]]] = {}
  unknown, bad = [], []
  for name, ref in tensors.items():
    rule, numbers = _match(layout.rules, name)
    if rule is None:
      unknown.append(name)
      continue
    sizes = _sizes(rule, ref.shape, _heads(rule, config, layout))
    if sizes is None:
      bad.append(f'{name}: {list(ref.shape)} is not {" x ".join(rule.rows)}')
    else:
      found[name] = rule, numbers, sizes
  _refuse(layout, unknown, 'tensors have no place in its table')
  _refuse(layout, bad, 'tensors do not have the shape that config.json says')
  leaves: dict[str, list[str]] = {}
  for name, (rule, numbers, _) in found.items():
    leaves.setdefault(_fill(rule.path, numbers), []).append(name)
  _check_stacks(layout, leaves, found, tensors)
  result = {}
  for path, names in leaves.items():
    stack = _extents(found[names[0]][0].stacked, [found[n][1] for n in names])
    for name in names:
      rule, numbers, sizes = found[name]
      result[name] = _place(layout, rule, path, numbers, sizes | stack)
  return {name: result[name] for name in tensors}


def named(
  layout: Layout, leaves: Mapping[tuple[str, ...], tuple[int, ...]]
) -> tuple[dict[str, Place], list[str]]:
  """The tensors that lie in leaves of these paths and shapes, and leaves of no rule."""
  found: dict[str, Place] = {}
  unknown = []
  for keys, shape in leaves.items():
    if not layout.rules:
      place = _as_it_is('.'.join(keys), shape)
      found['.'.join(keys)] = dataclasses.replace(place, path=keys)
      continue
    path = '/'.join(keys[:-1] if layout.tail and keys[-1] == layout.tail else keys)
    rule, numbers = _match(layout.rules, path, by_path=True)
    if rule is None or len(rule.axes) != len(shape):
      unknown.append(f'{"/".join(keys)}: {list(shape)}')
      continue
    sizes = dict(zip(rule.axes, shape, strict=True))
    for positions in itertools.product(*(range(sizes[s]) for s in rule.stacked)):
      each = numbers | dict(zip(rule.stacked, positions, strict=True))
      place = _place(layout, rule, path, each, sizes)
      found[_fill(rule.name, each)] = dataclasses.replace(place, path=keys)
  return found, unknown


def check_model(layout: Layout, config: Mapping[str, Any]) -> None:
  """Raises InputError for a model of which the table is not true."""
  kind = config.get('model_type')
  if layout.model_types is not None and kind not in layout.model_types:
    raise InputError(
      f'orbax_layout {layout.name}: no table for model_type {kind!r}, only for '
      f'{", ".join(sorted(layout.model_types))}',
      why=layout.why_not.get(str(kind), 'equal names may mean other weights there'),
      fix=USE_HF,
    )


def _as_it_is(name: str, shape: tuple[int, ...]) -> Place:
  return Place((name,), shape, shape, shape, tuple(range(len(shape))))


def _pattern(text: str) -> re.Pattern[str]:
  """'layers.{L}.w' matches 'layers.12.w', and tells L."""
  parts = re.split(r'\{(\w)\}', text)
  return re.compile(
    ''.join(
      rf'(?P<{part}>\d+)' if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
  )


def _match(
  rules: Iterable[Rule], text: str, by_path: bool = False
) -> tuple[Rule | None, dict[str, int]]:
  for rule in rules:
    if found := _pattern(rule.path if by_path else rule.name).fullmatch(text):
      return rule, {letter: int(n) for letter, n in found.groupdict().items()}
  return None, {}


def _fill(text: str, numbers: Mapping[str, int]) -> str:
  return text.format_map(numbers)


def _heads(rule: Rule, config: Mapping[str, Any], layout: Layout) -> dict[str, int]:
  """Numbers of heads that the rule needs."""
  sizes = {}
  for letter, field in _HEADS.items():
    if letter not in rule.split:
      continue
    value = config.get(field)
    if not isinstance(value, int) or value < 1:
      raise InputError(
        f'orbax_layout {layout.name}: config.json of the base has no {field}',
        why='the projections are split by heads',
        fix=f'add the field, or {USE_HF}',
      )
    sizes[letter] = value
  if isinstance(config.get('head_dim'), int):
    sizes['H'] = config['head_dim']
  return sizes


def _sizes(
  rule: Rule, shape: tuple[int, ...], known: Mapping[str, int]
) -> dict[str, int] | None:
  """The size of each letter of the tensor; None if it has another shape."""
  if len(rule.rows) != len(shape):
    return None
  sizes: dict[str, int] = {}
  for letters, size in zip(rule.rows, shape, strict=True):
    given = {letter: known[letter] for letter in letters if letter in known}
    rest = [letter for letter in letters if letter not in known]
    product = math.prod(given.values())
    if len(rest) > 1 or not product or size % product:
      return None
    if rest:
      given[rest[0]] = size // product
    elif size != product:
      return None
    sizes |= given
  return sizes


def _extents(
  stacked: Iterable[str], numbers: Iterable[Mapping[str, int]]
) -> dict[str, int]:
  """How many layers or experts a leaf stacks."""
  every = list(numbers)
  return {letter: 1 + max(n[letter] for n in every) for letter in stacked}


def _check_stacks(
  layout: Layout,
  leaves: Mapping[str, list[str]],
  found: Mapping[str, tuple[Rule, dict[str, int], dict[str, int]]],
  tensors: Mapping[str, TensorRef],
) -> None:
  """A leaf stacks tensors of one shape and dtype, without a hole."""
  problems = []
  for path, names in leaves.items():
    kinds = collections.Counter((tensors[n].dtype, tensors[n].shape) for n in names)
    if len(kinds) > 1:
      kind = ', '.join(
        f'{count} of {dtype} {list(s)}' for (dtype, s), count in kinds.items()
      )
      problems.append(f'{path}: {kind}')
    stacked = found[names[0]][0].stacked
    whole = math.prod(_extents(stacked, [found[n][1] for n in names]).values())
    if len(names) != whole:
      problems.append(f'{path}: {len(names)} of {whole} tensors')
  _refuse(layout, problems, 'leaves cannot be stacked')


def _refuse(layout: Layout, problems: list[str], what: str) -> None:
  if problems:
    raise InputError(
      f'orbax_layout {layout.name}: {len(problems)} {what}',
      problems,
      why='a tree that lacks weights, or holds other ones, would load as another model',
      fix=USE_HF,
    )


def _place(
  layout: Layout,
  rule: Rule,
  path: str,
  numbers: Mapping[str, int],
  sizes: Mapping[str, int],
) -> Place:
  tail = (layout.tail,) if layout.tail else ()
  return Place(
    path=(*path.split('/'), *tail),
    leaf_shape=tuple(sizes[letter] for letter in rule.axes),
    hf_shape=tuple(math.prod(sizes[letter] for letter in dim) for dim in rule.rows),
    split=tuple(sizes[letter] for letter in rule.split),
    axes=tuple(rule.axes.index(letter) for letter in rule.split),
    index=tuple((rule.axes.index(s), numbers[s]) for s in rule.stacked),
  )


def leaves_of(found: Mapping[str, Place]) -> Iterator[tuple[Place, list[str]]]:
  """Each leaf, as the place of its first tensor, with the names of all its tensors."""
  members: dict[tuple[str, ...], list[str]] = {}
  for name, place in found.items():
    members.setdefault(place.path, []).append(name)
  for names in members.values():
    yield found[names[0]], names
