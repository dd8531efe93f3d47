"""A mergekit configuration as the fields of a MergeConfig."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from resmerge_jax.errors import InputError
from resmerge_jax.mergekit_yaml.document import Model, Recipe, Scope, read_recipe
from resmerge_jax.mergekit_yaml.keys import refuse
from resmerge_jax.mergekit_yaml.outcomes import (
  Outcome,
  Place,
  blocks_for,
  check_rules,
  place_of,
  rules_for,
)
from resmerge_jax.mergekit_yaml.parameters import Bound, bind, value_for
from resmerge_jax.mergekit_yaml.settings import Scalar, at_depth
from resmerge_jax.mergekit_yaml.table import KITS, Kit
from resmerge_jax.methods.table import METHODS
from resmerge_jax.plan.rules import SCOPES, layer_counts, weights_at

COPIED = SCOPES['all'][0]  # integers and booleans
NEARLY_ZERO = 1e-6  # sum of weights that a merge would be divided by


class Translation(NamedTuple):
  """Fields for `config_from`, and what a user should know."""

  values: dict[str, Any]
  notes: tuple[str, ...]


def translate(document: Any, names_in: Callable[[str], Sequence[str]]) -> Translation:
  """The merge that a configuration of mergekit describes.

  Args:
    document: the YAML file as Python values.
    names_in: names of the tensors in a folder.

  Raises:
    InputError: anything that cannot be honoured, by its key.
  """
  recipe = read_recipe(document)
  kit = _kit(recipe.method)
  experts = _experts(recipe, kit)
  bound = bind(recipe, kit, experts)
  base = recipe.base or recipe.models[0].path
  names = names_in(base)
  n_layers = layer_counts(tuple(names))['']
  _check_layers(recipe, n_layers, bound)

  merge = _Merge(kit, experts, bound, n_layers, recipe.base is not None)
  places = {name: place_of(name, bound.filters) for name in names}
  examples = {place: name for name, place in reversed(places.items())}
  wanted = {place: merge.outcome(place, name) for place, name in examples.items()}
  blocks = blocks_for(wanted, bound.filters)
  default = blocks[-1].rest
  rules = rules_for(blocks, bound.filters, kit.ours, default)
  check_rules(rules, {name: wanted[place] for name, place in places.items()})
  values = {
    'base': base,
    'experts': [expert.path for expert in experts],
    'method': {'name': kit.ours, **dict(default.fields)},
    'rules': (COPIED, *(rule for rule, _ in rules)),
    'weights': default.weights,
    'output_dtype': recipe.output_dtype,
  }
  return Translation(
    values, (*recipe.notes, *bound.notes, *([kit.note] if kit.note else []))
  )


def _kit(method: str) -> Kit:
  known = [name for name, kit in KITS.items() if kit.ours in METHODS]
  if method not in known:
    raise refuse(
      'merge_method',
      method,
      'it is none of the methods that both programs have',
      f'use one of {", ".join(known)}; python -m tools.methods lists all there are here',
    )
  return KITS[method]


def _experts(recipe: Recipe, kit: Kit) -> tuple[Model, ...]:
  """Which models are merged, in their order; with slerp the base is the first."""
  if recipe.base is None and kit.role in ('subtracted', 'first'):
    raise InputError(
      f'base_model: got nothing, {recipe.method} needs it here',
      fix='write base_model: FOLDER',
    )
  others = tuple(model for model in recipe.models if model.path != recipe.base)
  experts = others
  if kit.role in ('averaged', 'first') and recipe.base is not None:
    listed = tuple(model for model in recipe.models if model.path == recipe.base)
    # mergekit adds the base to a list of models, but not to the sources of slices.
    if not listed and (recipe.layers is None or kit.role == 'first'):
      listed = (Model(recipe.base, Scope('base_model', {})),)
    experts = (*listed, *others) if kit.role == 'first' else recipe.models
    if kit.role == 'averaged' and listed and listed[0] not in recipe.models:
      experts = (*recipe.models, *listed)
  if not experts:
    raise InputError(
      'models: got none beside the base_model', fix='list the models to merge'
    )
  return experts


def _check_layers(recipe: Recipe, n_layers: int, bound: Bound) -> None:
  """Slices in order, from the first layer to the last, no layer twice."""
  if recipe.layers is None:
    return
  at = 0
  for start, stop in recipe.layers:
    if start != at or stop <= start:
      at = -1
      break
    at = stop
  if at != n_layers:
    raise refuse(
      'slices',
      ', '.join(f'{a}-{b}' for a, b in recipe.layers),
      f'the models have layers 0-{n_layers}; a model of other layers is not built here',
      f'let the slices follow each other from 0 to {n_layers}',
    )
  if len(recipe.layers) > 1 and any(s.has_gradient for s in bound.settings()):
    raise refuse(
      'slices',
      f'{len(recipe.layers)} of them, and a list of values over depth',
      'mergekit spreads the list over each slice anew',
      f'write one slice with layer_range [0, {n_layers}]',
    )


@dataclasses.dataclass(frozen=True)
class _Merge:
  """What decides over tensors."""

  kit: Kit
  experts: Sequence[Model]
  bound: Bound
  n_layers: int
  has_base: bool

  def outcome(self, place: Place, name: str) -> Outcome:
    """What tensors of this place, such as `name`, get.

    Outside the layers gradients are at their start, for what follows the last layer too.
    """
    matched, layer = place
    first = 0.0 if self.n_layers > 1 else 1.0  # mergekit's depth of an only layer
    t = 0.0 if layer is None else layer / (self.n_layers - 1) if layer else first
    values: dict[str, Scalar] = {
      key: at_depth(value_for(chain, matched, f'{key} of {name}'), t)
      for key, chain in self.bound.shared.items()
    }
    weights: tuple[Any, ...] | None = None
    for key, chains in self.bound.per_model.items():
      gradients = [
        value_for(chain, matched, f'{key} of {expert.path} for {name}')
        for chain, expert in zip(chains, self.experts, strict=True)
      ]
      now = [at_depth(gradient, t) for gradient in gradients]
      if key != 'weight':
        values[key] = _same(key, now, self.experts, name)
        continue
      weights = tuple(now)
      if layer is not None and self.n_layers > 1:
        weights = tuple(g if len(set(g)) > 1 else g[0] for g in gradients)
    if weights is not None:
      _check_sum(weights, t, self.kit, values, name)
    said = tuple(values.items()) + (() if weights is None else (('weight', weights),))
    fields = self.kit.fields(values, self.has_base)
    return Outcome(tuple(fields.items()), weights, said)


def _same(
  key: str, values: Sequence[Scalar], experts: Sequence[Model], name: str
) -> Scalar:
  if len(set(values)) > 1:
    listed = [f'{e.path}: {v:g}' for e, v in zip(experts, values, strict=True)]
    raise InputError(
      f'{key}: the models have different values for {name}',
      listed,
      why='here all experts of a merge share it',
      fix=f'give one {key} in the parameters at the top of the file',
    )
  return values[0]


def _check_sum(
  weights: tuple[Any, ...], t: float, kit: Kit, values: Mapping[str, Scalar], name: str
) -> None:
  now = weights_at(weights, t)
  if kit.divides(values) and abs(sum(now)) < NEARLY_ZERO:
    raise InputError(
      f'weight: {", ".join(f"{w:g}" for w in now)} sum to zero for {name}, and the '
      'merge is divided by their sum',
      fix='change the weights, or write normalize: false where the method has it',
    )
