"""A whole group in one folder: a base and its experts, made once and used again.

FOLDER/NAME/bf16 and FOLDER/NAME/fp32 are complete Hugging Face models; FOLDER/NAME/
record.json says how they came about. NAME is base, rl_TASK, sft_TASK, sft_length_TASK.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resmerge_jax.errors import InputError
from resmerge_jax.lab import smollm2
from resmerge_jax.lab.base import train_base
from resmerge_jax.lab.chat_rl import train_chat_rl
from resmerge_jax.lab.experts import train_rl, train_sft
from resmerge_jax.lab.recipe import GroupRecipe
from resmerge_jax.lab.resume import Kept
from resmerge_jax.lab.tokenizer import tokenizer_files
from resmerge_jax.models.decoder import Decoder
from resmerge_jax.models.load import load_decoder
from resmerge_jax.models.save import save_decoder
from resmerge_jax.sizes import cores

PRECISIONS = {'bf16': jnp.bfloat16, 'fp32': jnp.float32}
RECORD = 'record.json'
STATE = 'training.npy'  # of an expert that is not finished
Say = Callable[[str], None]


def train_group(
  recipe: GroupRecipe, seed: int, folder: pathlib.Path, say: Say
) -> dict[str, dict[str, Any]]:
  """Trains what `folder` does not have yet; as many experts at once as there are cores.

  The same recipe and seed give the same models on the same machine.

  Returns:
    The record of each model by its name, base first.

  Raises:
    InputError: a model in `folder` is of another recipe or seed, or training fails.
  """
  group = _Group(recipe, seed, folder, say)
  records = {'base': group.model('base')}
  kinds = [[n for n, (k, _) in recipe.experts.items() if k == 'rl']]
  kinds.append([n for n in recipe.experts if n not in kinds[0]])
  for names in kinds:  # those of RL first: the others are measured by them
    # A pretrained base is large: its steps use all cores and much of the memory.
    at_once = 1 if recipe.pretrained else cores()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
      try:
        records.update(zip(names, pool.map(group.model, names), strict=True))
      except BaseException:  # Ctrl-C too: the pool waits for what has begun
        group.stopped = True
        raise
  return records


def model_names(recipe: GroupRecipe) -> tuple[str, ...]:
  return ('base', *recipe.experts)


class _Group:
  def __init__(self, recipe: GroupRecipe, seed: int, folder: pathlib.Path, say: Say):
    self.recipe, self.seed, self.folder = recipe, seed, folder
    self.stopped = False
    self._say = say
    self._base: tuple[nnx.GraphDef, nnx.State] | None = None

  def say(self, text: str) -> None:
    """What training calls between its programs; raises once another model has failed."""
    if self.stopped:
      raise KeyboardInterrupt
    self._say(text)

  def model(self, name: str) -> dict[str, Any]:
    """The record of a model that is in the folder, or is made now."""
    file = self.folder / name / RECORD
    made_by = _made_by(self.recipe, self.seed, name)
    if file.is_file():
      record = json.loads(file.read_text())
      if record['made_by'] != made_by:
        raise InputError(
          f'{file.parent}: made by another recipe or seed',
          fix='give another --output, or delete that folder',
        )
      return record
    begun_s = time.perf_counter()
    entropy = [self.seed, zlib.crc32(name.encode())]
    state = self.folder / name / STATE
    if self.recipe.pretrained:
      graph, params, record = self._from_pretrained(name, entropy, Kept(state, made_by))
    else:
      graph, params, record = self._trained(name, np.random.default_rng(entropy))
    record['seconds'] = round(time.perf_counter() - begun_s, 1)
    record['made_by'] = made_by
    save_model(nnx.merge(graph, params), file.parent, self.recipe.pretrained)
    file.write_text(json.dumps(record, indent=1) + '\n')  # last: the model is complete
    state.unlink(missing_ok=True)
    return record

  def _from_pretrained(
    self, name: str, entropy: list[int], kept: Kept
  ) -> tuple[nnx.GraphDef, nnx.State, dict[str, Any]]:
    if name == 'base':
      return *nnx.split(smollm2.base()), {'kind': 'base'}
    graph, base = nnx.split(load_decoder(self.folder / 'base/fp32'))
    _, task = self.recipe.experts[name]
    made = train_chat_rl(self.recipe, task, graph, base, entropy, kept, self.say)
    return graph, *made

  def _trained(
    self, name: str, rng: np.random.Generator
  ) -> tuple[nnx.GraphDef, nnx.State, dict[str, Any]]:
    if name == 'base':
      graph, params, record = train_base(self.recipe, rng, self.seed, self.say)
      self._base = (graph, params)
      return graph, params, record
    if self._base is None:
      self._base = nnx.split(load_decoder(self.folder / 'base/fp32'))
    kind, task = self.recipe.experts[name]
    graph, base = self._base
    if kind == 'rl':
      made = train_rl(self.recipe, task, graph, base, rng, self.say)
    else:
      twin = json.loads((self.folder / f'rl_{task}' / RECORD).read_text())
      made = train_sft(self.recipe, kind, twin, graph, base, rng, self.say)
    return graph, *made


def save_model(model: Decoder, folder: pathlib.Path, pretrained: str = '') -> None:
  """Complete Hugging Face folders in both precisions, replacing what is there."""
  graph, params = nnx.split(model)
  if pretrained:
    files = smollm2.tokenizer_files()
  else:
    files = tokenizer_files(model.config.max_position_embeddings)
  for name, dtype in PRECISIONS.items():
    cast = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), params)
    save_decoder(nnx.merge(graph, cast), folder / name, overwrite=True, files=files)


def _made_by(recipe: GroupRecipe, seed: int, name: str) -> dict[str, Any]:
  """What decides about a model: a group with more experts has the same ones."""
  if recipe.pretrained:
    used = ['pretrained'] if name == 'base' else ['pretrained', 'rl', 'check_prompts']
    return _plain(recipe, seed, used)
  used = ['model', 'base', 'check_prompts', 'check_every']
  kind = 'base' if name == 'base' else recipe.experts[name][0]
  used += {'base': [], 'rl': ['rl']}.get(kind, ['rl', 'sft'])
  return _plain(recipe, seed, used)


def _plain(recipe: GroupRecipe, seed: int, used: list[str]) -> dict[str, Any]:
  values = dataclasses.asdict(recipe)
  made_by = {'seed': seed, **{field: values[field] for field in used}}
  return json.loads(json.dumps(made_by))
