"""A saved recipe: coefficients and vectors that give a merge again without an SVD."""

import collections
import dataclasses
import hashlib
import json
import math
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from resmerge_jax.checkpoint.format import read_header
from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.config import MergeConfig, config_from
from resmerge_jax.errors import InputError
from resmerge_jax.methods.table import method_of, post_of
from resmerge_jax.pipeline.kernel_spec import RecipeUse
from resmerge_jax.plan.recipe_layout import RECIPE, part_name
from resmerge_jax.plan.stacks import Step
from resmerge_jax.types import TensorRef
from resmerge_jax.writers.disk import crc_text

FORMAT = 1
SAME_NORM = 1e-4  # relative: float32 sums in another order differ by less than 1e-6
# Settings of the machine that merged: the result does not depend on them.
_LOCAL = ('mesh', 'memory_budget', 'whole_files', 'overwrite', 'save_recipe')
_FIX = 'give the folder recipe/ of the output of a merge with --save_recipe'


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A merge to be made again from the folder `recipe/` of its output.

  `base` and `experts`, in the order of the merge, must be the checkpoints that were
  merged; they may lie elsewhere now. `rho`, `beta_min`, `beta_max` replace those of
  the merge (None: as they were).
  """

  path: str | pathlib.Path
  base: str | pathlib.Path
  experts: tuple[str | pathlib.Path, ...]
  rho: float | None = None
  beta_min: float | None = None
  beta_max: float | None = None

  @property
  def changes(self) -> dict[str, float]:
    fields = ('rho', 'beta_min', 'beta_max')
    values = {name: getattr(self, name) for name in fields}
    return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class OpenRecipe:
  """What the files of a recipe hold. `config` has the changed parameters.

  `changed`: whether some differ from those of the merge. `sha256` is over all files.
  """

  path: pathlib.Path
  config: MergeConfig
  changed: bool
  inputs: tuple[Mapping[str, Any], ...]
  tensors: Mapping[str, Mapping[str, Any]]
  arrays: Mapping[str, np.ndarray]
  sha256: str

  def use(self, step: Step) -> RecipeUse:
    """Whether a step takes the recorded coefficients or new ones."""
    params = step.stack.chosen.method
    if not self.changed or params != self.config.method or not step.present[0]:
      return 'replay'
    return 'refit' if method_of(params).refit else 'replay'

  def found(self, step: Step) -> dict[str, dict[str, np.ndarray]]:
    """What the program of a step needs of each of its tensors."""
    names: tuple[str, ...] = ('a_N', 'w_T', 'u_TxR', 'v_TxC')
    refit = method_of(step.stack.chosen.method).refit
    if self.use(step) == 'refit' and refit is not None:
      names = ('u_TxR', 'v_TxC', *refit.shapes(1))
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in step.names:
      row = max(r for r in self.tensors[name]['rows'] if r <= step.row_start)
      parts = {part: part_name(name, row, part) for part in names}
      found[name] = {
        part: self.arrays[key] for part, key in parts.items() if key in self.arrays
      }
    return found

  def check_group(self, group: ExpertGroup) -> None:
    """Raises InputError unless the headers are those of the merged checkpoints."""
    wrong = [
      f'{entry["role"]} {entry["id"]!r}, {source.path}: headers with SHA-256 '
      f'{source.header_sha256[:16]}, expected {entry["header_sha256"][:16]}'
      for source, entry in zip(group.sources, self.inputs, strict=True)
      if source.header_sha256 != entry['header_sha256']
    ]
    if wrong:
      raise InputError(
        f'recipe {self.path}: made from other checkpoints',
        wrong,
        why='its coefficients and vectors belong to the task vectors of those',
        fix='give the base and the experts of that merge, in its order',
      )

  def check_records(self, records: Iterable[Mapping[str, Any]]) -> None:
    """Raises InputError where task vectors are not those of the merge.

    Compared are their norms and shares of unchanged weights, of the tensors that have
    been computed here: experts of one base have equal headers.
    """
    wrong = []
    for record in records:
      known = self.tensors.get(record['name'])
      if known is None or 'delta_norm' not in record:
        continue
      for i, entry in enumerate(self.inputs[1:]):
        norm, expected = record['delta_norm'][i], known['delta_norm'][i]
        same = record['zero_fraction'][i] == known['zero_fraction'][i]
        if not same or not math.isclose(norm, expected, rel_tol=SAME_NORM):
          wrong.append(
            f'{record["name"]}: update of expert {entry["id"]!r} has norm {norm:.6g}, '
            f'expected {expected:.6g}'
          )
    if wrong:
      raise InputError(
        f'recipe {self.path}: the weights are not those that were merged',
        wrong,
        why='its coefficients and vectors belong to the task vectors of those',
        fix='give the base and the experts of that merge, in its order',
      )


def open_recipe(recipe: Recipe, **settings: Any) -> OpenRecipe:
  """Reads a recipe; `settings` are further fields of its configuration.

  Raises:
    InputError: no such recipe, a damaged one; parameters that cannot be changed.
  """
  path = pathlib.Path(recipe.path).expanduser()
  content, digest = _content(path), hashlib.sha256()
  arrays: dict[str, np.ndarray] = {}
  for name, entry in content['files'].items():
    arrays |= _arrays(path.parent / name, entry)
    digest.update(json.dumps(entry).encode())
  digest.update(json.dumps(content, sort_keys=True).encode())
  inputs = content['inputs']
  if len(recipe.experts) != len(inputs) - 1:
    raise InputError(
      f'recipe {path}: got {len(recipe.experts)} experts, it was made from '
      f'{len(inputs) - 1}: {", ".join(entry["id"] for entry in inputs[1:])}'
    )
  values = {k: v for k, v in content['config'].items() if k not in _LOCAL}
  merged = config_from(values)
  here = {
    'base': recipe.base,
    'experts': recipe.experts,
    'expert_ids': [entry['id'] for entry in inputs[1:]],
    'output': '',
    'method': _changed(merged, recipe, path),
  }
  config = dataclasses.replace(merged, **{**here, **settings})
  return OpenRecipe(
    path=path,
    config=config,
    changed=config.method != merged.method,
    inputs=tuple(inputs),
    tensors=content['tensors'],
    arrays=arrays,
    sha256=digest.hexdigest(),
  )


def _changed(config: MergeConfig, recipe: Recipe, path: pathlib.Path) -> Any:
  """The parameters of the method with the recipe's changes."""
  method, changes = method_of(config.method), recipe.changes
  scanning = [name for name, post in config.post if post_of(post).scans(post)]
  if changes and scanning:
    raise InputError(
      f'recipe {path}: parameters cannot be changed under {", ".join(scanning)}',
      why='it scales by what a scan found of the updates as they were',
      fix='leave them out, or merge again',
    )
  fields = method.refit.fields if method.refit else ()
  fixed = [name for name in changes if name not in fields]
  if fixed:
    raise InputError(
      f'recipe {path}: {method.name} has no {", ".join(fixed)} to change',
      why='only what follows from the numbers in the recipe can be made anew',
      fix='leave them out: the recipe then gives the merge as it was',
    )
  return dataclasses.replace(config.method, **changes)


def _content(path: pathlib.Path) -> dict[str, Any]:
  file = path / pathlib.PurePath(RECIPE).name
  try:
    content = json.loads(file.read_bytes())
    version = content['format']
    if version == FORMAT:
      _ = [content[key] for key in ('config', 'inputs', 'files', 'tensors')]
  except OSError as error:
    raise InputError(f'{file}: cannot be read: {error.strerror}', fix=_FIX) from error
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f'{file}: not a recipe ({error!r})', fix=_FIX) from error
  if version != FORMAT:
    raise InputError(
      f'{file}: format {version}, expected {FORMAT}',
      fix='use the version of resmerge_jax that wrote it: '
      f'{content.get("resmerge_jax", "unknown")}',
    )
  return content


def _arrays(file: pathlib.Path, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The tensors of one file of factors, as views of its bytes."""
  header = read_header(file)
  data = np.fromfile(file, np.uint8)
  crc = crc_text(zlib.crc32(data.data))
  if data.size != expected['bytes'] or crc != expected['crc32']:
    raise InputError(
      f'{file}: damaged: not the bytes that the merge wrote',
      fix='copy the recipe again, or merge again with --save_recipe',
    )

  def view(ref: TensorRef) -> np.ndarray:
    raw = data[ref.start : ref.start + ref.nbytes]
    return raw.view(np.float32).reshape(ref.shape)

  return {name: view(ref) for name, ref in header.tensors.items()}


def recipe_json(
  facts: Mapping[str, Any],
  files: Mapping[str, Any],
  parts: Iterable[tuple[str, int]],
  records: Iterable[Mapping[str, Any]],
) -> bytes:
  """recipe.json: what was merged, and by what the inputs are known again.

  Args:
    facts: of the manifest. files: size and checksum of each file of factors.
    parts: tensors and rows from which on arrays hold.
  """
  rows = collections.defaultdict(list)
  for name, row in parts:
    rows[name].append(row)
  known = ('role', 'id', 'path', 'header_sha256', 'bytes')
  content = {
    'format': FORMAT,
    'resmerge_jax': facts['resmerge_jax'],
    'config': facts['config'],
    'inputs': [{key: entry[key] for key in known} for entry in facts['inputs']],
    'files': dict(files),
    'tensors': {
      record['name']: {
        'rows': rows[record['name']],
        'delta_norm': record['delta_norm'],
        'zero_fraction': record['zero_fraction'],
      }
      for record in records
      if record['name'] in rows
    },
  }
  return (json.dumps(content, indent=1) + '\n').encode()
