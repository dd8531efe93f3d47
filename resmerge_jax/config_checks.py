"""What a configuration's values may be, and what becomes of one that is none of them."""

from collections.abc import Sequence
from typing import Any

from resmerge_jax.errors import InputError
from resmerge_jax.methods.resmerge_params import MAX_RANK
from resmerge_jax.methods.table import method_of
from resmerge_jax.plan.orbax_files import OUTPUT_FORMATS
from resmerge_jax.plan.rules import Rule, as_weights, weights_at
from resmerge_jax.trees.table import LAYOUTS

OUTPUT_DTYPES = ('base', 'bfloat16', 'float16', 'float32')
VOCAB_POLICIES = ('error', 'base_rows', 'pad')
EXTRA_POLICIES = ('error', 'ignore')
MISSING_POLICIES = ('error', 'base')


def parse_mesh(mesh: Any) -> tuple[int, int]:
  """(layer, row) of 'layer:4,row:2', in any order; an axis left out is 1. Or a pair.

  Raises:
    InputError: another axis, or no positive number.
  """
  pair: Any = mesh
  if isinstance(mesh, str):
    parts = [part.partition(':')[::2] for part in mesh.replace(' ', '').split(',')]
    axes = dict(parts)
    once = len(axes) == len(parts) and axes.keys() <= {'layer', 'row'}
    if once and all(n.isdecimal() for n in axes.values()):
      pair = int(axes.get('layer', 1)), int(axes.get('row', 1))
  if (
    isinstance(pair, str)
    or not isinstance(pair, Sequence)
    or len(pair) != 2
    or not all(isinstance(n, int) and n > 0 for n in pair)
  ):
    raise InputError(
      f'mesh: got {mesh!r}, expected axes layer and row with numbers of devices',
      fix='write layer:4,row:2, or layer:8',
    )
  return pair[0], pair[1]


def check_choices(
  output_dtype: str,
  vocab: str,
  seed: int,
  extra: str = 'error',
  missing: str = 'error',
) -> None:
  """Raises InputError for a value outside its list, or what is no seed."""
  for name, value, choices in (
    ('output_dtype', output_dtype, OUTPUT_DTYPES),
    ('vocab', vocab, VOCAB_POLICIES),
    ('extra', extra, EXTRA_POLICIES),
    ('missing', missing, MISSING_POLICIES),
  ):
    if value not in choices:
      raise InputError(f'{name}: got {value!r}, expected {" | ".join(choices)}')
  if not isinstance(seed, int) or seed < 0:  # numpy's generators take no other
    raise InputError(f'seed: got {seed}, expected 0 or more')


def check_format(output_format: str, orbax_layout: str) -> None:
  """Raises InputError for an unknown format or layout, or a layout without use."""
  for name, value, choices in (
    ('output_format', output_format, OUTPUT_FORMATS),
    ('orbax_layout', orbax_layout, tuple(LAYOUTS)),
  ):
    if value not in choices:
      raise InputError(f'{name}: got {value!r}, expected {" | ".join(choices)}')
  if output_format == 'safetensors' and orbax_layout != 'hf':
    raise InputError(
      f'orbax_layout: got {orbax_layout}, but no Orbax checkpoint is written',
      fix='add --output_format=orbax or --output_format=both',
    )


def check_experts(
  n_experts: int,
  expert_ids: tuple[str, ...] | None,
  weights: tuple[Any, ...] | None,
  method: Any,
) -> None:
  """One id and one weight per expert, and weights only where they mean something."""
  if not n_experts:
    raise InputError('no experts given', fix='pass --experts=DIR,DIR,...')
  for name, values in (('expert_ids', expert_ids), ('weights', weights)):
    if values is not None and len(values) != n_experts:
      raise InputError(
        f'{name}: got {len(values)} for {n_experts} experts',
        fix='give one per expert, in the order of the experts, or none',
      )
  _check_number(method, n_experts, 'method')
  if weights is None:
    return
  weights = as_weights(weights)
  if not method_of(method).takes_weights:
    raise InputError(
      f'weights: {method_of(method).name} defines none',
      why='its paper treats the experts alike; weighting only the tensors outside it '
      'would merge two halves of the model by different rules',
      fix='leave weights out, or use a method that takes them (task_arithmetic)',
    )
  averages = getattr(method, 'reduce', 'sum') == 'mean'
  if averages and any(abs(sum(weights_at(weights, t))) < 1e-6 for t in (0.0, 0.5, 1.0)):
    raise InputError(
      f'weights: {list(weights)} sum to zero, so their mean does not exist',
      fix="change the weights or set method.reduce='sum'",
    )


def check_head_ranks(ranks: tuple[Any, ...] | None, method: Any) -> None:
  """Raises InputError for what are no ranks, or not that of the method among them."""
  own = method_of(method).head_rank(method)
  if ranks is not None and not (
    own in ranks and all(isinstance(k, int) and 1 <= k <= MAX_RANK for k in ranks)
  ):
    raise InputError(
      f'head_ranks: got {list(ranks)}, expected ranks from 1 to {MAX_RANK} and '
      f'{own or "none"} among them',
      why='these heads are solved together, and the method takes its own of them',
      fix='leave head_ranks out, unless a merge of a sweep is to be made again',
    )


def check_rules(rules: Sequence[Rule], n_experts: int) -> None:
  """Whether the methods and weights that rules bring suit so many experts."""
  for rule in rules:
    who = f'rule {rule.match!r}'
    if rule.method:
      _check_number(rule.method[1], n_experts, f'{who}, method')
    if rule.weights is not None and len(rule.weights) != n_experts:
      raise InputError(
        f'{who}: got {len(rule.weights)} weights for {n_experts} experts',
        fix='give one per expert, in the order of the experts, or none',
      )


def _check_number(method: Any, n_experts: int, who: str) -> None:
  if expected := method_of(method).expects(method, n_experts):
    raise InputError(
      f'{who} {method_of(method).name}: got {n_experts} experts, expected {expected}'
    )
