"""Learning from the first step to the last: memory, progress, curve, result."""

import csv
import dataclasses
import functools
import io
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resmerge_jax.adarank.group import Opened, known_shapes, load_known
from resmerge_jax.adarank.learn import (
  Known,
  Learned,
  Learning,
  Positions,
  Report,
  Step,
  adam,
  make_step,
  start,
)
from resmerge_jax.adarank.prompts import Batch, batches
from resmerge_jax.errors import InputError
from resmerge_jax.methods.rank_mask import RankMask
from resmerge_jax.sizes import format_size

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Defaults are those of the authors' code for GPT-2 under task arithmetic.

  `batch`: prompts of each expert per step. `rank_ratio`, `prior`: share of components
  and lambda at the start. `positions`: where the entropy is taken (`learn.entropies`).
  """

  steps: int = 5000
  batch: int = 8
  learning_rate: float = 5e-5
  rank_ratio: float = 1.0
  prior: float = 0.3
  positions: Positions = 'all'
  seed: int = 0

  def __post_init__(self) -> None:
    RankMask(self.rank_ratio, self.prior)  # checks them
    wrong = [
      f'{name}: got {getattr(self, name)}, expected more than 0'
      for name in ('steps', 'batch', 'learning_rate')
      if not 0 < getattr(self, name) < math.inf
    ]
    if self.positions not in get_args(Positions):
      wrong.append(f'positions: got {self.positions!r}, expected all or last')
    if wrong:
      raise InputError('settings out of range', wrong)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Masks and coefficients after the last step, and what was known for them.

  `curve`: of each step, mean entropy per expert and share of components kept before it.
  """

  known: Known
  learned: Learned
  curve: list[Report]

  def masks(self) -> dict[str, np.ndarray]:
    """uint8 [N, S] by name."""
    return {k: np.asarray(m > 0, np.uint8) for k, m in self.learned.m_NxS.items()}

  def lambdas(self) -> dict[str, np.ndarray]:
    """float32 [N] by name."""
    return {k: np.asarray(x) for k, x in self.learned.lambda_N.items()}


def learn(
  opened: Opened,
  prompts: Sequence[Sequence[np.ndarray]],
  settings: Settings,
  memory_budget: int | None,
  say: Say,
) -> Outcome:
  """Minimises the entropy over `settings.steps` steps, on all devices of this process.

  Raises:
    InputError: more memory is needed than there is, or NaN in the weights.
  """
  mesh = jax.make_mesh((jax.local_device_count(),), ('all',), (AxisType.Auto,))
  drawn = batches(prompts, settings.batch, settings.seed)
  shapes = known_shapes(opened, lambda shape: _shape(mesh, shape))
  learning = _begin(opened, shapes, settings)
  first = next(drawn)
  step = make_step(
    opened.model, opened.places, settings.positions, settings.learning_rate
  )
  compiled = _compiled(step, mesh, learning, shapes, first)
  _check_memory(compiled, mesh, memory_budget, say)

  def put(x: Any) -> jax.Array:
    return jax.device_put(x, _spread(mesh, x.shape))

  known = load_known(opened, put, say)
  learning = jax.tree.map(put, learning)
  curve: list[Report] = []
  every = max(settings.steps // 100, 1)
  some = itertools.islice(itertools.chain([first], drawn), settings.steps)
  for number, batch in enumerate(some, 1):
    learning, report = compiled(learning, known, jax.tree.map(put, batch))
    curve.append(jax.tree.map(np.asarray, report))
    if number % every == 0 or number == 1:
      mean = float(curve[-1].entropy_N.mean())
      say(f'step {number}: entropy {mean:.4f}, {float(report.kept):.1%} kept')
  return Outcome(known, learning.learned, curve)


def _begin(opened: Opened, shapes: Known, settings: Settings) -> Learning:
  n, params = len(opened.experts), RankMask(settings.rank_ratio, settings.prior)
  kept = {name: params.kept(rank, n) for name, rank in opened.ranks.items()}
  learned = start(shapes.updates, n, kept, settings.prior)
  return Learning(learned, adam(settings.learning_rate).init(learned))


def curve_csv(outcome: Outcome, experts: Sequence[str]) -> str:
  """A line per step: entropies in nats, before it, and the share of components kept."""
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(['step', 'entropy', *(f'entropy_{e}' for e in experts), 'kept'])
  for step, (entropy_N, kept) in enumerate(outcome.curve):
    row = [entropy_N.mean(), *entropy_N, kept]
    table.writerow([step, *(f'{float(x):.6g}' for x in row)])
  return text.getvalue()


def _shape(mesh: Mesh, shape: Any, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=_spread(mesh, shape))


def _spread(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """The first dimension that all devices divide over all of them, else a copy each."""
  for i, size in enumerate(shape):
    if size and size % mesh.size == 0:
      return NamedSharding(mesh, PartitionSpec(*(None,) * i, mesh.axis_names))
  return NamedSharding(mesh, PartitionSpec())


def _compiled(
  step: Step, mesh: Mesh, learning: Learning, known: Known, batch: Batch
) -> Any:
  """For arrays that lie as `_spread` says; from shapes, before there are any."""
  as_shape = functools.partial(jax.tree.map, lambda x: _shape(mesh, x.shape, x.dtype))
  given = as_shape(learning), known, as_shape(batch)
  where = jax.tree.map(lambda x: x.sharding, given[0])
  whole = NamedSharding(mesh, PartitionSpec())
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(where, whole))
  return jitted.lower(*given).compile()


def _check_memory(compiled: Any, mesh: Mesh, budget: int | None, say: Say) -> None:
  """Raises InputError where the compiled step needs more than the budget."""
  sizes = compiled.memory_analysis()
  resident = sizes.argument_size_in_bytes
  each = resident + sizes.temp_size_in_bytes + sizes.output_size_in_bytes
  each -= sizes.alias_size_in_bytes
  device = mesh.devices.flat[0]
  count = mesh.size if device.platform == 'cpu' else 1  # CPU devices share the memory
  told = (device.memory_stats() or {}).get('bytes_limit')
  limit = budget or told or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  where = 'memory' if device.platform == 'cpu' else 'memory of each device'
  text = (
    f'{format_size(count * each)} of {where}, {format_size(count * resident)} of it for '
    'the base, all components of all experts and a batch'
  )
  if count * each > limit:
    raise InputError(
      f'a step needs {text}; there are {format_size(limit)}',
      why='all components stay in memory while their masks are learned',
      fix='a smaller --batch, shorter prompts, more devices, or fewer experts',
    )
  say(f'needs {text}')
