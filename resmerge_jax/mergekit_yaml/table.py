"""What mergekit's merge methods are called here, and what their parameters mean here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from resmerge_jax.mergekit_yaml.settings import Kind, Scalar

# What base_model is to the method: what it subtracts ('subtracted'; 'may be' where it
# works without), one more model of the average, or the first of the two models.
Role = Literal['subtracted', 'may be subtracted', 'averaged', 'first']
Values = Mapping[str, Scalar]


@dataclasses.dataclass(frozen=True)
class Parameter:
  """`default` None: it must be given. `only`: the one value that can be honoured here,
  `why` it is the only one. `idle`: it changes no weight in mergekit, `why` tells.
  """

  kind: Kind = 'number'
  default: Scalar | None = None
  only: Scalar | None = None
  idle: bool = False
  why: str = ''


@dataclasses.dataclass(frozen=True)
class Kit:
  """A merge method of mergekit: `ours` is its name in the table of methods here.

  `shared` parameters have one value per tensor, those of `per_model` one per model
  (of which all but `weight` must agree here). `fields(values, has_base)`: the
  parameters of our method. `divides`: whether weights that sum to zero are refused.
  `note`: where the same method gives other numbers there.
  """

  ours: str
  fields: Callable[[Values, bool], dict[str, Any]]
  role: Role = 'subtracted'
  shared: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)
  per_model: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)
  divides: Callable[[Values], bool] = lambda values: False  # noqa: ARG005
  note: str = ''

  @property
  def parameters(self) -> dict[str, Parameter]:
    return {**MEMORY, **self.shared, **self.per_model}


MEMORY = {
  'int8_mask': Parameter(
    'flag', False, idle=True, why='it saves memory in mergekit; here masks are not kept'
  )
}
WEIGHT = {'weight': Parameter()}
NO_NORMALIZE = 'what is left of the experts is summed here'
AVERAGES = 'what agrees with the elected sign is averaged here'
RESCALES = 'what is dropped is made up for here'
NO_RESCALE = 'what is trimmed is not made up for here'
NO_TRIM = 'task_arithmetic trims nothing; mergekit reads and ignores it as well'


def _sparse(normalize: Parameter, rescale: Parameter, **per_model: Parameter) -> dict:
  """Parameters of mergekit's generalised task arithmetic."""
  return {
    'shared': {
      'normalize': normalize,
      'rescale': rescale,
      'lambda': Parameter(default=1.0),
    },
    'per_model': {**WEIGHT, **per_model},
  }


def _reduce(values: Values) -> str:
  return 'mean' if values['normalize'] else 'sum'


def _dare(values: Values, has_base: bool) -> dict[str, Any]:  # noqa: ARG001
  return {
    'flavour': 'mergekit',
    'density': values['density'],
    'scale': values['lambda'],
  }


def _elect(elect: bool) -> Callable[[Values, bool], dict[str, Any]]:
  def fields(values: Values, has_base: bool) -> dict[str, Any]:  # noqa: ARG001
    own = {k: v for k, v in values.items() if k in ('density', 'epsilon', 'gamma')}
    return {**own, 'elect': elect, 'scale': values['lambda']}

  return fields


def _normalizes(values: Values) -> bool:
  return bool(values['normalize'])


def _flag(default: bool, why: str) -> Parameter:
  """A flag that can only be what it is by default."""
  return Parameter('flag', default, only=default, why=why)


_DENSITY = Parameter(default=1.0)
_RANDOM = _sparse(_flag(False, NO_NORMALIZE), _flag(True, RESCALES), density=_DENSITY)
_CRUMBS = _sparse(
  _flag(False, NO_NORMALIZE),
  _flag(False, NO_RESCALE),
  density=_DENSITY,
  gamma=Parameter(default=0.01),
)
_EPSILON = Parameter(default=0.15)

KITS: dict[str, Kit] = {
  'linear': Kit(
    'linear',
    lambda values, has_base: {'normalize': values['normalize']},  # noqa: ARG005
    role='averaged',
    shared={'normalize': Parameter('flag', True)},
    per_model=WEIGHT,
    divides=_normalizes,
  ),
  'task_arithmetic': Kit(
    'task_arithmetic',
    lambda values, has_base: {  # noqa: ARG005
      'reduce': _reduce(values),
      'scale': values['lambda'],
    },
    divides=_normalizes,
    **_sparse(
      Parameter('flag', False),
      Parameter('flag', False, idle=True, why=NO_TRIM),
      density=dataclasses.replace(_DENSITY, idle=True, why=NO_TRIM),
    ),
  ),
  'ties': Kit(
    'ties',
    lambda values, has_base: {  # noqa: ARG005
      'flavour': 'mergekit',
      'keep': values['density'],
      'scale': values['lambda'],
      'reduce': _reduce(values),
    },
    **_sparse(
      Parameter('flag', True),
      _flag(False, NO_RESCALE),
      density=_DENSITY,
    ),
  ),
  'dare_linear': Kit('dare', _dare, **_RANDOM),
  'dare_ties': Kit('dare_ties', _dare, **_RANDOM),
  'della': Kit(
    'della',
    _elect(True),
    **_sparse(
      _flag(True, AVERAGES), _flag(True, RESCALES), density=_DENSITY, epsilon=_EPSILON
    ),
  ),
  'della_linear': Kit(
    'della',
    _elect(False),
    **_sparse(
      _flag(False, NO_NORMALIZE),
      _flag(True, RESCALES),
      density=_DENSITY,
      epsilon=_EPSILON,
    ),
  ),
  'breadcrumbs': Kit('breadcrumbs', _elect(False), **_CRUMBS),
  'breadcrumbs_ties': Kit('breadcrumbs', _elect(True), **_CRUMBS),
  'sce': Kit(
    'sce',
    lambda values, has_base: {'select': values['select_topk']},  # noqa: ARG005
    shared={'select_topk': Parameter(default=1.0)},
    note='sce: experts count by their mean squares; mergekit counts them alike where '
    'these sum to less than 1e-6, as most updates do',
  ),
  'nearswap': Kit(
    'nearswap',
    lambda values, has_base: {'t': values['t']},  # noqa: ARG005
    shared={'t': Parameter()},
    note='nearswap: entries move by t; in mergekit by less where t is below 1e-6',
  ),
  'slerp': Kit(
    'slerp',
    lambda values, has_base: {'t': values['t'], 'on': 'weights'},  # noqa: ARG005
    role='first',
    shared={'t': Parameter()},
  ),
  'nuslerp': Kit(
    'nuslerp',
    lambda values, has_base: {
      'on': 'task_vectors' if has_base else 'weights',
      'flatten': values['nuslerp_flatten'],
    },
    role='may be subtracted',
    shared={
      'nuslerp_flatten': Parameter('flag', True),
      'nuslerp_row_wise': _flag(False, 'angles are per tensor or per row here'),
    },
    per_model=WEIGHT,
  ),
  'multislerp': Kit(
    'multislerp',
    lambda values, has_base: {},  # noqa: ARG005
    shared={
      'normalize_weights': _flag(True, 'weights are divided by their sum here'),
      'eps': Parameter(
        default=1e-8, only=1e-8, why='vectors of norm zero are told apart exactly here'
      ),
    },
    per_model=WEIGHT,
    divides=lambda values: True,  # noqa: ARG005
  ),
  'karcher': Kit(
    'karcher',
    lambda values, has_base: dict(values),  # noqa: ARG005
    role='averaged',
    shared={
      'max_iter': Parameter('integer', 10),
      'tol': Parameter(default=1e-5),
    },
  ),
  'model_stock': Kit(
    'model_stock',
    lambda values, has_base: dict(values),  # noqa: ARG005
    shared={'filter_wise': Parameter('flag', False)},
    note='model_stock: products of two norms below 1e-6, of updates of that size, are 1e-6 '
    'in mergekit and what they are here',
  ),
  'ram': Kit(
    'ram',
    lambda values, has_base: {  # noqa: ARG005
      'mode': 'arm',
      'rescale': 1.0,
      'threshold': values['epsilon'],
    },
    shared={'epsilon': Parameter(default=1e-5)},
  ),
}
