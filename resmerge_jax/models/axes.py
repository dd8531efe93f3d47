"""Which mesh axes split which dimensions of parameters and activations."""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Self

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resmerge_jax.errors import InputError

Path = tuple[str | int, ...]  # of a parameter in the tree: ('layers', 0, 'attn', ...)
Axis = str | tuple[str, ...] | None  # mesh axes that split one dimension
# Shape letter (models/layers.py) -> the rule that holds for it.
_RULE = {
  'V': 'vocab',
  'D': 'embed',
  'F': 'mlp',
  'N': 'heads',
  'K': 'kv_heads',
  'H': 'head_dim',
}


@dataclasses.dataclass(frozen=True)
class AxisRules:
  """Mesh axes per kind of dimension; None leaves it whole. Norms are never split.

  `batch` is of activations, all others of parameters.
  """

  vocab: Axis = 'tp'
  embed: Axis = 'fsdp'
  mlp: Axis = 'tp'
  heads: Axis = 'tp'
  kv_heads: Axis = 'tp'
  head_dim: Axis = None
  batch: Axis = 'fsdp'

  def axes(self, letters: str) -> tuple[Axis, ...]:
    """For an array whose dimensions are `letters`."""
    return tuple(getattr(self, _RULE[letter]) for letter in letters)

  def on(self, mesh: Mesh) -> Self:
    """These rules without the axes that `mesh` does not have."""
    kept = {}
    for name, axis in vars(self).items():
      kept[name] = axis if all(a in mesh.shape for a in _names(axis)) else None
    return dataclasses.replace(self, **kept)


def shardings(
  params: Mapping[Path, nnx.Param], mesh: Mesh
) -> dict[Path, NamedSharding]:
  """How each parameter lies on `mesh`, by the axes that its metadata names.

  Raises:
    InputError: a mesh of Explicit axes; axes that the mesh lacks, that split two
      dimensions of one parameter, or that do not divide a dimension; once per kind of
      parameter.
  """
  if set(mesh.axis_types) != {AxisType.Auto}:
    raise InputError(
      f'mesh {dict(mesh.shape)}: its axes are not all of type Auto',
      why='products here leave their shardings to the compiler',
      fix='make_mesh(..., axis_types=(AxisType.Auto,) * number of axes)',
    )
  problems: dict[str, None] = {}  # ordered, and each once
  found = {}
  for path, param in params.items():
    axes = param.get_metadata('out_sharding')
    text = _problem(param.shape, axes, mesh)
    if text:
      problems[f'{name_of(path, "*")} {list(param.shape)}: {text}'] = None
    else:
      found[path] = NamedSharding(mesh, PartitionSpec(*axes))
  if problems:
    raise InputError(
      f'mesh {dict(mesh.shape)}: the axis rules do not fit it',
      problems,
      fix='give rules (AxisRules) that leave those dimensions whole, or another mesh',
    )
  return found


def name_of(path: Path, layer: str | None = None) -> str:
  """'layers.0.attn.q.kernel'; with `layer` in place of the number, if it is given."""
  return '.'.join(layer if layer and type(p) is int else str(p) for p in path)


def split_batch(x: jax.Array, axis: Axis) -> jax.Array:
  """`x` with its first dimension split by `axis`, inside `jax.set_mesh` of an Auto mesh.

  Left to itself the compiler may prefer to gather the batch on all devices, because the
  parameters split the hidden dimension. A batch that the axis does not divide is.
  """
  mesh = jax.sharding.get_abstract_mesh()
  names = _names(axis)
  if (
    mesh.empty or not mesh.are_all_axes_auto or not all(n in mesh.shape for n in names)
  ):
    return x
  if x.shape[0] % math.prod(mesh.shape[name] for name in names):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axis))


def _problem(shape: tuple[int, ...], axes: tuple[Axis, ...], mesh: Mesh) -> str:
  names = [name for axis in axes for name in _names(axis)]
  if unknown := [name for name in names if name not in mesh.shape]:
    return f'no mesh axis {unknown[0]!r}'
  if twice := [n for n, count in collections.Counter(names).items() if count > 1]:
    return f'mesh axis {twice[0]!r} splits two of its dimensions'
  for size, axis in zip(shape, axes, strict=True):
    parts = math.prod(mesh.shape[name] for name in _names(axis))
    if size % parts:
      return f'{size} is not divided by the {parts} devices of {axis!r}'
  return ''


def _names(axis: Axis) -> tuple[str, ...]:
  return (axis,) if isinstance(axis, str) else axis or ()
