"""Base and experts as the learning wants them: all components of all matrices."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resmerge_jax.adarank.learn import Factors, Known
from resmerge_jax.checkpoint.files import State
from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.config import MergeConfig
from resmerge_jax.errors import InputError
from resmerge_jax.host_float import to_float32
from resmerge_jax.linalg.short_side import Blocks
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.methods.rank_mask import RankMask, components
from resmerge_jax.models.decoder import Decoder, parameters
from resmerge_jax.models.hf_config import config_from_hf
from resmerge_jax.models.hf_names import Place, places
from resmerge_jax.models.load import check_tensors
from resmerge_jax.pipeline.checks import check_heads
from resmerge_jax.pipeline.masks import coefficient_names, mask_shapes
from resmerge_jax.pipeline.prepare import open_group, plan_for
from resmerge_jax.sharding import merge_devices
from resmerge_jax.types import DTYPES

Put = Callable[[np.ndarray], Any]  # an array to where it stays


@dataclasses.dataclass(frozen=True)
class Opened:
  """What headers tell. `model` is of shapes alone, `places` are those of its parameters.

  `ranks`: number of components of each matrix. `scaled`: tensors with coefficients, the
  matrices among them.
  """

  group: ExpertGroup
  states: tuple[Mapping[str, State], ...]
  model: Decoder
  places: tuple[Place, ...]
  ranks: Mapping[str, int]
  scaled: tuple[str, ...]

  @property
  def experts(self) -> tuple[str, ...]:
    """Their ids."""
    return tuple(expert.id for expert in self.group.experts)


def open_experts(
  base: str | pathlib.Path,
  experts: Sequence[str | pathlib.Path],
  expert_ids: Sequence[str] | None,
) -> Opened:
  """Checks that these can be learned on, and merged by `rank_mask` afterwards.

  Raises:
    InputError: what a merge would refuse; adapters; a base that is no decoder of ours.
  """
  ids = tuple(expert_ids) if expert_ids else None
  config = MergeConfig(base, tuple(experts), expert_ids=ids, method=RankMask())
  group, states = open_group(config)
  if adapters := [e.id for e in group.experts if e.adapter is not None]:
    raise InputError(
      'experts that are LoRA adapters',
      adapters,
      why='all singular components of an expert are learned on, and these have few',
      fix='merge each into a model first: tools.merge --method=task_arithmetic with it '
      'as the only expert',
    )
  name = f'base {group.base.id!r}, config.json'
  model = Decoder(config_from_hf(group.base.config, name), None)
  found = places({path: param.shape for path, param in parameters(model).items()})
  check_tensors(found, group.base)
  plan = plan_for(config, group)
  shapes = mask_shapes(plan, len(group.experts))
  return Opened(
    group=group,
    states=states,
    model=model,
    places=tuple(found),
    ranks={name: shape[1] for name, shape in shapes.items()},
    scaled=tuple(coefficient_names(plan)),
  )


def known_shapes(opened: Opened, put: Callable[[tuple[int, ...]], Any]) -> Known:
  """What `load_known` will give; `put` makes an entry of a shape."""
  n = len(opened.experts)
  base, updates = {}, {}
  for place in opened.places:
    shape = base[place.name] = place.hf_shape
    if place.name in opened.ranks:
      rank = opened.ranks[place.name]
      left, right = (n, shape[0], rank), (n, rank, shape[1])
      updates[place.name] = Factors(put(left), put(right))
    elif place.name in opened.scaled:
      updates[place.name] = put((n, *shape))
  return Known({name: put(shape) for name, shape in base.items()}, updates)


def load_known(opened: Opened, put: Put, say: Callable[[str], None]) -> Known:
  """Reads every tensor once and takes the matrices apart, on the host in float64.

  Raises:
    InputError: NaN or Inf in the weights, a file that changed or cannot be read.
  """
  group, base, updates = opened.group, {}, {}
  with contextlib.ExitStack() as stack:
    readers = [
      stack.enter_context(reader_of(source, states))
      for source, states in zip(group.sources, opened.states, strict=True)
    ]
    check_heads(group, readers)
    for count, place in enumerate(opened.places, 1):
      name = place.name
      stored = [_tensor(group, i, name, reader) for i, reader in enumerate(readers)]
      base[name] = put(stored[0])
      if name in opened.ranks:
        left, right = _factors(stored[0], np.stack(stored[1:]))
        updates[name] = Factors(put(left), put(right))
      elif name in opened.scaled:
        updates[name] = put(np.stack(stored[1:]) - stored[0])
      if count % 50 == 0 or count == len(opened.places):
        say(f'taken apart: {count} of {len(opened.places)} tensors')
  return Known(base, updates)


def _tensor(group: ExpertGroup, i: int, name: str, reader: Reader) -> np.ndarray:
  """Tensor `name` of source i in float32."""
  ref = group.ref(i, name)
  raw = np.empty(ref.nbytes, np.uint8)
  reader.read_into(ref, 0, ref.rows, raw)
  values = to_float32(raw.view(DTYPES[ref.dtype]).reshape(ref.shape))
  if not np.isfinite(values).all():
    raise InputError(f'NaN or Inf in the weights: {group.sources[i].id!r}, {name}')
  return values


def _factors(base_RxC: np.ndarray, experts_NxRxC: np.ndarray) -> Factors:
  """In float32, from the Gram matrices of which `rank_mask` makes its components."""
  cpu = merge_devices(own=True, host=True)[0]
  with jax.default_device(cpu), jax.enable_x64(True):
    return Factors(*map(np.asarray, _taken_apart(base_RxC, experts_NxRxC)))


@jax.jit
def _taken_apart(base_RxC: jax.Array, experts_NxRxC: jax.Array) -> Factors:
  blocks = Blocks(TaskVectors(base_RxC, experts_NxRxC))
  _, v_NxSxS = jax.lax.map(components, blocks.sum(blocks.grams))
  delta_NxRxC = experts_NxRxC.astype(jnp.float64) - base_RxC.astype(jnp.float64)
  vt_NxSxS = v_NxSxS.swapaxes(1, 2)
  if blocks.wide:
    factors = v_NxSxS, vt_NxSxS @ delta_NxRxC
  else:
    factors = delta_NxRxC @ v_NxSxS, vt_NxSxS
  return Factors(*(x.astype(jnp.float32) for x in factors))
