"""Where the arrays of a recipe lie: float32 tensors in files of their own."""

import dataclasses
from collections.abc import Mapping

from resmerge_jax.checkpoint.format import encode_header
from resmerge_jax.plan.layout import OutputLayout, ShardFile
from resmerge_jax.types import TensorRef

FOLDER = 'recipe'
FACTORS = 'factors.safetensors'
RECIPE = f'{FOLDER}/recipe.json'
# (tensor, row from which on they hold) -> shapes of its arrays by name
Parts = Mapping[tuple[str, int], Mapping[str, tuple[int, ...]]]


def with_recipe(layout: OutputLayout, parts: Parts, apart: bool) -> OutputLayout:
  """`layout` with the files of a recipe. `apart`: one for each group of weight files."""
  files: dict[str, list[TensorRef]] = {}
  for (name, row), shapes in parts.items():
    file = recipe_file(layout.group(name)) if apart else f'{FOLDER}/{FACTORS}'
    files.setdefault(file, []).extend(
      TensorRef(part_name(name, row, part), 'F32', shape, file)
      for part, shape in shapes.items()
    )
  names = {
    (name, row): {part: part_name(name, row, part) for part in shapes}
    for (name, row), shapes in parts.items()
  }
  recipe = tuple(
    ShardFile(file, *encode_header(sorted(refs, key=lambda ref: ref.name)))
    for file, refs in files.items()
  )
  return dataclasses.replace(layout, recipe=recipe, parts=names)


def recipe_file(weight_file: str) -> str:
  """The file of a recipe that belongs to one group of weight files."""
  return f'{FOLDER}/factors-{weight_file}'


def part_name(name: str, row: int, part: str) -> str:
  """'model.norm.weight:a_N'; '...@1000:a_N' where it holds from row 1000 on."""
  return f'{name}@{row}:{part}' if row else f'{name}:{part}'
