"""A Hugging Face folder straight into a decoder, each device's part from its bytes."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from resmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from resmerge_jax.checkpoint.reader import Reader
from resmerge_jax.checkpoint.readers import reader_of
from resmerge_jax.errors import InputError
from resmerge_jax.host_float import to_float32
from resmerge_jax.models.axes import AxisRules, Path, shardings
from resmerge_jax.models.decoder import Decoder, parameters, with_arrays
from resmerge_jax.models.hf_config import config_from_hf
from resmerge_jax.models.hf_names import Place, places
from resmerge_jax.types import DTYPES, TensorRef

# Buffers of old Llama folders; the config gives the same numbers.
_COMPUTED = re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq')
_Box = tuple[tuple[int, int], ...]  # begin and end in each dimension


def load_decoder(
  folder: str | os.PathLike,
  mesh: Mesh | None = None,
  dtype: Any = None,
  *,
  param_dtype: Any = None,
  rules: AxisRules | None = None,
) -> Decoder:
  """The model in `folder`, on `mesh` or on the default device.

  A device's part of a tensor is read from its bytes in the file and nothing else is:
  the host never holds the model.

  Args:
    mesh: any mesh of Auto axes. Call the decoder inside `jax.set_mesh(mesh)`.
    dtype: what is computed in; that of the parameters unless given.
    param_dtype: of the parameters; as they are stored unless given (float64 is
      rounded to float32).
    rules: mesh axes per kind of dimension; unless given, those of AxisRules that the
      mesh has.

  Raises:
    InputError: no such folder, a model that is not computed here, tensors that do not
      fit its config, or rules that do not fit the mesh; before a weight is read.
  """
  checkpoint = open_checkpoint(folder, role='model')
  with reader_of(checkpoint) as reader:
    return read_decoder(
      checkpoint, reader, mesh, dtype, param_dtype=param_dtype, rules=rules
    )


def read_decoder(
  checkpoint: Checkpoint,
  reader: Reader,
  mesh: Mesh | None = None,
  dtype: Any = None,
  *,
  param_dtype: Any = None,
  rules: AxisRules | None = None,
) -> Decoder:
  """As `load_decoder`, from any checkpoint (also one in memory) and its reader."""
  if checkpoint.adapter is not None:
    raise InputError(
      f'model {checkpoint.id!r}: a LoRA adapter, not a model',
      fix='merge it into its base: tools.merge --method=task_arithmetic',
    )
  if param_dtype is not None:
    param_dtype = jnp.dtype(param_dtype)
  config = config_from_hf(checkpoint.config, f'model {checkpoint.id!r}, config.json')
  if rules is None and mesh is not None:
    rules = AxisRules().on(mesh)
  shapes = parameters(Decoder(config, None))
  found = places({path: param.shape for path, param in shapes.items()})
  check_tensors(found, checkpoint)
  stored = _parameter_dtype(checkpoint.tensors['model.embed_tokens.weight'])
  model = Decoder(
    config,
    None,
    dtype=dtype or param_dtype or stored,
    param_dtype=param_dtype or stored,
    rules=rules,
  )
  where: Mapping[Path, Sharding]
  if mesh is None:
    where = dict.fromkeys(shapes, SingleDeviceSharding(jax.local_devices()[0]))
  else:
    where = shardings(parameters(model), mesh)
  arrays = {
    place.path: _array(
      place, checkpoint.tensors[place.name], reader, where[place.path], param_dtype
    )
    for place in found
  }
  return with_arrays(model, arrays)


def check_tensors(wanted: list[Place], checkpoint: Checkpoint) -> None:
  """Raises unless the checkpoint holds the wanted tensors, so shaped, and no others."""
  tensors, problems = checkpoint.tensors, []
  for place in wanted:
    ref = tensors.get(place.name)
    if ref is None:
      problems.append(f'{place.name}: missing, {list(place.hf_shape)} by config.json')
    elif ref.shape != place.hf_shape:
      by_config = list(place.hf_shape)
      problems.append(f'{place.name}: {list(ref.shape)}, {by_config} by config.json')
    elif not ref.is_float:
      problems.append(f'{place.name}: {ref.dtype} instead of floating-point numbers')
  names = {place.name for place in wanted}
  extra = [n for n in tensors if n not in names and not _COMPUTED.fullmatch(n)]
  problems += [f'{name}: extra, {list(tensors[name].shape)}' for name in extra]
  fix = ''
  if 'lm_head.weight' in extra:  # the config ties it
    fix = 'tie_word_embeddings false in config.json makes the stored head be used'
  if problems:
    raise InputError(
      f'model {checkpoint.id!r}: its tensors are not those of its config.json',
      problems,
      why='a model with other tensors computes something else',
      fix=fix,
    )


def read_box(
  reader: Reader, ref: TensorRef, shape: tuple[int, ...], box: _Box
) -> np.ndarray:
  """Entries in `box` of a stored tensor seen as an array of `shape`.

  One read per run of entries that lie together.
  """
  flat = dataclasses.replace(ref, shape=(ref.size, 1))  # an entry is a row
  out = np.empty([end - begin for begin, end in box], DTYPES[ref.dtype])
  inner = len(shape)  # dimensions from here on are whole
  while inner and box[inner - 1] == (0, shape[inner - 1]):
    inner -= 1
  outer = max(inner - 1, 0)  # a part of one dimension, and whole ones, lie together
  strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
  run = math.prod(out.shape[outer:])
  parts = out.reshape(-1, run).view(np.uint8)
  first = sum(begin * stride for (begin, _), stride in zip(box, strides, strict=True))
  for part, index in zip(parts, np.ndindex(out.shape[:outer]), strict=True):
    start = first + sum(i * stride for i, stride in zip(index, strides, strict=False))
    reader.read_into(flat, start, start + run, part)
  return out


def _array(
  place: Place,
  ref: TensorRef,
  reader: Reader,
  where: Sharding,
  param_dtype: np.dtype | None,
) -> jax.Array:
  """One parameter; replicas on several devices are read once."""
  dtype = param_dtype or _parameter_dtype(ref)

  @functools.cache
  def read(box: _Box) -> np.ndarray:
    part = read_box(reader, ref, place.split, tuple(box[axis] for axis in place.axes))
    values = place.to_leaf(part)
    if dtype == np.float32:
      return to_float32(values)
    return values.astype(dtype, copy=False)

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    spans = (s.indices(n)[:2] for s, n in zip(index, place.leaf_shape, strict=True))
    return read(tuple(spans))

  return jax.make_array_from_callback(place.leaf_shape, where, part)


def _parameter_dtype(ref: TensorRef) -> np.dtype:
  """As it is stored; JAX has no float64 unless told."""
  return DTYPES['F32'] if ref.dtype == 'F64' else DTYPES[ref.dtype]
