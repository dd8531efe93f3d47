"""The file that says which singular components of each expert's update stay.

A safetensors file. `NAME:mask_NxS`, uint8 or float32 of 0 and 1, is for matrix NAME: one
row per expert, one entry per singular component of its update, the largest first; S is
the short side. `NAME:lambda_N`, float32, holds the coefficients of the experts for
tensor NAME, matrix or not. `experts` in the metadata is the JSON list of their ids.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from resmerge_jax.checkpoint.format import encode_header, read_header
from resmerge_jax.errors import InputError
from resmerge_jax.types import CODES, DTYPES, TensorRef

MASK, LAMBDA = ':mask_NxS', ':lambda_N'
_DTYPES = {MASK: ('U8', 'F32'), LAMBDA: ('F32',)}


@dataclasses.dataclass(frozen=True)
class MaskFile:
  """What the file holds: masks as uint8 [N, S], coefficients as float32 [N], by tensor."""

  path: pathlib.Path
  sha256: str
  experts: tuple[str, ...]
  masks: Mapping[str, np.ndarray]
  lambdas: Mapping[str, np.ndarray]


def read_mask_file(path: str | pathlib.Path) -> MaskFile:
  """Reads all of it; whether it fits a merge is not asked here.

  Raises:
    InputError: no such file; entries, numbers or metadata that it cannot have.
  """
  path = pathlib.Path(path).expanduser()
  header = read_header(path)
  data = np.fromfile(path, np.uint8)
  arrays: dict[str, dict[str, np.ndarray]] = {MASK: {}, LAMBDA: {}}
  wrong = []
  for ref in header.tensors.values():
    kind = next((kind for kind in arrays if ref.name.endswith(kind)), None)
    if kind is None or ref.dtype not in _DTYPES[kind]:
      wrong.append(f'{ref.name}: {ref.dtype} {list(ref.shape)}')
      continue
    raw = data[ref.start : ref.start + ref.nbytes]
    array = raw.view(DTYPES[ref.dtype]).reshape(ref.shape)
    if kind == MASK and not np.isin(array, (0, 1)).all():
      wrong.append(f'{ref.name}: other numbers than 0 and 1')
    elif not np.isfinite(array).all():
      wrong.append(f'{ref.name}: NaN or Inf')
    else:
      array = array.astype(np.uint8) if kind == MASK else array
      arrays[kind][ref.name.removesuffix(kind)] = array
  if wrong:
    raise InputError(
      f'masks {path}: entries that are no masks and no coefficients',
      wrong,
      fix=f'write NAME{MASK} (uint8 of 0 and 1) and NAME{LAMBDA} (float32)',
    )
  return MaskFile(
    path=path,
    sha256=hashlib.sha256(data.data).hexdigest(),
    experts=_experts(path, header.metadata),
    masks=arrays[MASK],
    lambdas=arrays[LAMBDA],
  )


def mask_file_bytes(
  experts: Sequence[str],
  masks: Mapping[str, np.ndarray],
  lambdas: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> bytes:
  """The file of these arrays; `metadata` stands beside the experts' ids."""
  arrays: dict[str, np.ndarray] = {
    f'{name}{MASK}': np.asarray(x, np.uint8) for name, x in masks.items()
  }
  arrays |= {f'{n}{LAMBDA}': np.asarray(x, np.float32) for n, x in lambdas.items()}
  refs = [TensorRef(name, CODES[x.dtype], x.shape) for name, x in arrays.items()]
  about = {'experts': json.dumps(list(experts)), **(metadata or {})}
  raw, _ = encode_header(refs, about)
  return raw + b''.join(x.tobytes() for x in arrays.values())


def _experts(path: pathlib.Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
  try:
    experts = json.loads(metadata.get('experts', ''))
  except ValueError:
    experts = None
  if not isinstance(experts, list) or not all(isinstance(e, str) for e in experts):
    raise InputError(
      f'masks {path}: no list of experts in its metadata',
      why='the rows of a mask belong to experts, in one order',
      fix='write the JSON list of their ids under "experts" of __metadata__',
    )
  return tuple(experts)
