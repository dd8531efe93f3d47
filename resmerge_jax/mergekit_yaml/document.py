"""The structure of a mergekit configuration: models or slices, and where parameters are.

What cannot be honoured is refused with its key, its value and what to do about it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.mergekit_yaml.files import check_tokens, local_folder, output_dtype
from resmerge_jax.mergekit_yaml.keys import expect, get, refuse

TOP = (
  'merge_method', 'base_model', 'models', 'slices', 'parameters', 'dtype', 'out_dtype',
  'tokenizer_source', 'tokenizer', 'chat_template', 'modules',
)  # fmt: skip
ONE_SLICE = 'write one slice with a list of values, or filters such as {filter: layers.3., value: 1}'


@dataclasses.dataclass(frozen=True)
class Scope:
  """Parameters at one place of the file, `where`, as they were read."""

  where: str
  parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
  """A folder and the parameters given for it alone."""

  path: str
  own: Scope


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A configuration as read. `shared`: scopes of all models, the nearest first.

  `layers`: ranges of layers that the slices cover, or None without slices.
  """

  method: str
  base: str | None
  models: tuple[Model, ...]
  shared: tuple[Scope, ...]
  layers: tuple[tuple[int, int], ...] | None
  output_dtype: str
  notes: tuple[str, ...]


def read_recipe(document: Any) -> Recipe:
  """Judges the whole structure; methods and parameters come later.

  Raises:
    InputError: an unknown key, or a value that cannot be honoured.
  """
  expect(document, 'the file', TOP)
  method = get(document, 'merge_method', str)
  base = None
  if document.get('base_model') is not None:
    base = local_folder(document['base_model'], 'base_model')
  check_tokens(document, base)
  dtype, notes = output_dtype(document)
  models, layers, shared = _models(document, base)
  for at, model in enumerate(models):
    if model.path in [other.path for other in models[:at]]:
      raise refuse(
        model.own.where, model.path, 'it is in the list twice', 'name it once'
      )
  if base is None:
    notes = (
      *notes,
      f'no base_model: config.json and tokenizer are those of {models[0].path}',
    )
  return Recipe(
    method,
    base,
    models,
    (*shared, Scope('parameters', _parameters(document, 'parameters'))),
    layers,
    dtype,
    notes,
  )


def _models(
  document: Mapping[str, Any], base: str | None
) -> tuple[tuple[Model, ...], tuple[tuple[int, int], ...] | None, tuple[Scope, ...]]:
  if document.get('modules') is not None:
    raise refuse(
      'modules',
      ', '.join(map(str, document['modules'])),
      'models of several modules are not merged part by part here',
      'write models, or slices, for a model of one module',
    )
  given = [key for key in ('models', 'slices') if document.get(key)]
  if len(given) != 1:
    raise InputError(
      f'got {" and ".join(given) or "neither models nor slices"}, expected one of them',
      fix='write models: with a list of - model: FOLDER',
    )
  if given == ['models']:
    entries = get(document, 'models', list)
    models = tuple(
      _model(entry, f'models[{i}]', ('model', 'parameters'))
      for i, entry in enumerate(entries)
    )
    return models, None, ()
  return _slices(get(document, 'slices', list), base)


def _slices(
  slices: list, base: str | None
) -> tuple[tuple[Model, ...], tuple[tuple[int, int], ...], tuple[Scope, ...]]:
  """Slices that together are the models as they are.

  Of several slices none has parameters of its own: a gradient would begin anew in each.
  """
  found = []
  for i, entry in enumerate(slices):
    where = f'slices[{i}]'
    expect(entry, where, ('sources', 'parameters', 'base_model', 'residual_weight'))
    if entry.get('residual_weight') is not None:
      raise refuse(
        f'{where}.residual_weight',
        entry['residual_weight'],
        'mergekit reads it and does nothing with it',
        'remove it',
      )
    own = entry.get('base_model')
    if own is not None and local_folder(own, f'{where}.base_model') != base:
      raise refuse(
        f'{where}.base_model',
        own,
        'a merge has one base here',
        'write base_model at the top of the file',
      )
    ranges, models = set(), []
    for j, source in enumerate(get(entry, 'sources', list, where)):
      place = f'{where}.sources[{j}]'
      models.append(_model(source, place, ('model', 'layer_range', 'parameters')))
      ranges.add(_layer_range(source, place))
    if len(ranges) > 1:
      raise refuse(
        where,
        ', '.join(f'{a}-{b}' for a, b in sorted(ranges)),
        'layers of different number would be merged with each other',
        'give all sources of a slice the same layer_range',
      )
    scope = Scope(f'{where}.parameters', _parameters(entry, where))
    found.append((ranges.pop(), tuple(models), scope))
  _check_alike([models for _, models, _ in found], [scope for _, _, scope in found])
  layers = tuple(layers for layers, _, _ in found)
  return found[0][1], layers, (found[0][2],)


def _check_alike(lists: list[tuple[Model, ...]], scopes: list[Scope]) -> None:
  """Several slices: the same models in each, and no parameters of their own."""
  for i, models in enumerate(lists[1:], 1):
    if [model.path for model in models] != [model.path for model in lists[0]]:
      raise refuse(
        f'slices[{i}].sources',
        ', '.join(model.path for model in models),
        'the layers of a merge come from the same models here',
        'name the same models in the same order in every slice',
      )
  if len(lists) == 1:
    return
  for scope in [*scopes, *(model.own for models in lists for model in models)]:
    if scope.parameters:
      raise refuse(
        scope.where,
        dict(scope.parameters),
        'of several slices none can have parameters of its own here',
        ONE_SLICE,
      )


def _layer_range(source: Mapping[str, Any], where: str) -> tuple[int, int]:
  value = source.get('layer_range')
  if (
    not isinstance(value, list)
    or len(value) != 2
    or not all(isinstance(n, int) and not isinstance(n, bool) for n in value)
  ):
    raise InputError(
      f'{where}.layer_range: got {value!r}, expected [first, one past the last]'
    )
  return value[0], value[1]


def _model(entry: Any, where: str, keys: tuple[str, ...]) -> Model:
  expect(entry, where, keys)
  path = local_folder(entry.get('model'), f'{where}.model')
  scope = Scope(f'{where}.parameters', _parameters(entry, where))
  return Model(path, scope)


def _parameters(entry: Mapping[str, Any], where: str) -> Mapping[str, Any]:
  found = entry.get('parameters')
  if found is None:
    return {}
  if not isinstance(found, Mapping):
    raise InputError(f'{where}: got {found!r} as parameters, expected names and values')
  return found
