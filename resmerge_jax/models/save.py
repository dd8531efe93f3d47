"""A decoder as Hugging Face tensors, and as a folder that transformers loads."""

import json
import os
from collections.abc import Iterator, Mapping

import numpy as np

from resmerge_jax.errors import InputError
from resmerge_jax.models.decoder import Decoder, parameters
from resmerge_jax.models.hf_config import config_to_hf
from resmerge_jax.models.hf_names import places
from resmerge_jax.plan.layout import SINGLE_NAME, lay_out
from resmerge_jax.types import CODES, TensorRef
from resmerge_jax.writers.folder import FolderWriter


def hf_tensors(model: Decoder) -> Iterator[tuple[str, np.ndarray]]:
  """Name and value of each Hugging Face tensor, brought to the host one at a time.

  Raises:
    InputError: parameters that lie partly on the devices of other processes.
  """
  params = parameters(model)
  if not all(param[...].is_fully_addressable for param in params.values()):
    raise InputError(
      'the decoder lies on the devices of several processes',
      fix='save it from one process that holds all of it',
    )
  for place in places({path: param.shape for path, param in params.items()}):
    yield place.name, place.from_leaf(np.asarray(params[place.path][...]))


def save_decoder(
  model: Decoder,
  folder: str | os.PathLike,
  overwrite: bool = False,
  files: Mapping[str, bytes] | None = None,
) -> None:
  """Writes config.json and model.safetensors, in the dtypes of the parameters.

  A tokenizer is not part of a decoder: give its `files` by name, or copy them into the
  folder. The folder has its name only when it is complete.

  Raises:
    InputError: something is in the way, or the disk refuses.
  """
  params = parameters(model)
  found = places({path: param.shape for path, param in params.items()})
  refs = [
    TensorRef(p.name, CODES[np.dtype(params[p.path].dtype)], p.hf_shape, SINGLE_NAME)
    for p in found
  ]
  config = config_to_hf(model.config, str(params['embed', 'embedding'].dtype))
  with FolderWriter(folder, lay_out(refs), overwrite) as writer:
    for name, value in hf_tensors(model):
      writer.write(name, 0, value)
    text = json.dumps(config, indent=2) + '\n'
    writer.commit({**(files or {}), 'config.json': text.encode()})
