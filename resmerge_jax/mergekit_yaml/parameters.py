"""The values that a mergekit configuration gives the parameters of each tensor."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from resmerge_jax.errors import InputError
from resmerge_jax.mergekit_yaml.document import Model, Recipe, Scope
from resmerge_jax.mergekit_yaml.keys import refuse
from resmerge_jax.mergekit_yaml.settings import Scalar, Setting, read_setting
from resmerge_jax.mergekit_yaml.table import MEMORY, Kit, Parameter
from resmerge_jax.parameters import did_you_mean

Gradient = tuple[Scalar, ...]


@dataclasses.dataclass(frozen=True)
class Bound:
  """The parameters of one merge: settings of each, the nearest place first.

  `shared[name]`, `per_model[name][i]` of expert i. `notes`: what has no effect.
  """

  shared: Mapping[str, Sequence[Setting]]
  per_model: Mapping[str, Sequence[Sequence[Setting]]]
  notes: tuple[str, ...]

  def settings(self) -> Iterator[Setting]:
    for chain in self.shared.values():
      yield from chain
    for chains in self.per_model.values():
      for chain in chains:
        yield from chain

  @property
  def filters(self) -> tuple[str, ...]:
    """Every filter, in the order of the file."""
    found = [text for setting in self.settings() for text in setting.filters]
    return tuple(dict.fromkeys(found))


def bind(recipe: Recipe, kit: Kit, experts: Sequence[Model]) -> Bound:
  """Reads the settings of every parameter that the method has.

  Raises:
    InputError: a parameter that the method does not have, or that mergekit reads at
      another place only.
  """
  notes = []
  for scope in recipe.shared:
    notes += _check(scope, kit, kit.parameters, recipe.method)
  for model in recipe.models:
    if model in experts:
      notes += _check(model.own, kit, {**MEMORY, **kit.per_model}, recipe.method)
    elif model.own.parameters:
      notes.append(
        f'{model.own.where}: without effect, as in mergekit: it is the base_model'
      )
  return Bound(
    shared={
      name: tuple(_chain(recipe.shared, name, parameter))
      for name, parameter in kit.shared.items()
      if not parameter.idle
    },
    per_model={
      name: tuple(
        tuple(_chain((model.own, *recipe.shared), name, parameter)) for model in experts
      )
      for name, parameter in kit.per_model.items()
      if not parameter.idle
    },
    notes=tuple(notes),
  )


def _check(
  scope: Scope, kit: Kit, known: Mapping[str, Parameter], method: str
) -> list[str]:
  """Notes about parameters without effect; raises for those not known here."""
  notes = []
  for name, raw in scope.parameters.items():
    where = f'{scope.where}.{name}'
    if name in known:
      if known[name].idle:
        read_setting(raw, where, known[name].kind)
        notes.append(f'{where}: without effect: {known[name].why}')
    elif name in kit.parameters:
      raise refuse(
        where,
        raw,
        f'mergekit reads {name} of {method} for all models at once and skips it here',
        'move it to the parameters at the top of the file',
      )
    else:
      raise refuse(
        where,
        raw,
        f'{method} has no such parameter; mergekit skips it in silence',
        f'remove it{did_you_mean(str(name), kit.parameters)}; parameters of {method}: '
        f'{", ".join(kit.parameters)}',
      )
  return notes


def _chain(
  scopes: Sequence[Scope], name: str, parameter: Parameter
) -> Iterator[Setting]:
  """Settings by precedence, the default last."""
  for scope in scopes:
    if name in scope.parameters:
      where = f'{scope.where}.{name}'
      setting = read_setting(scope.parameters[name], where, parameter.kind)
      _check_only(setting, where, parameter)
      yield setting
  if parameter.default is not None:
    yield Setting(parameter.kind, ((None, (parameter.default,)),))


def _check_only(setting: Setting, where: str, parameter: Parameter) -> None:
  for _, values in setting.branches:
    for value in values:
      if parameter.only is not None and value != parameter.only:
        raise refuse(
          where,
          _yaml(value),
          parameter.why,
          f'leave it out, or {_yaml(parameter.only)}',
        )


def _yaml(value: Scalar) -> str:
  return str(value).lower() if isinstance(value, bool) else f'{value:g}'


def value_for(chain: Sequence[Setting], matched: frozenset[str], what: str) -> Gradient:
  """The values for a name that holds the filters `matched`: the first place with any.

  Raises:
    InputError: no place has one for `what`.
  """
  for setting in chain:
    values = setting.values_for(matched)
    if values is not None:
      return values
  raise InputError(
    f'no {what}',
    why='mergekit has no default for it',
    fix='give it to each model, or in the parameters at the top; a list of filters '
    'ends with - value: NUMBER for all other tensors',
  )
