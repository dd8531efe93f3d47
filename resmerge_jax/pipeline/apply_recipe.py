"""A whole merge made again from its recipe: recipe, base and experts in, folder out."""

import pathlib

from resmerge_jax.pipeline.merge import Manifest, merge
from resmerge_jax.pipeline.recipe import Recipe, open_recipe


def apply_recipe(
  recipe: Recipe,
  output: str | pathlib.Path,
  *,
  overwrite: bool = False,
  resume: bool = False,
  show_progress: bool = False,
) -> Manifest:
  """Writes the folder of the merge that saved this recipe, without an SVD.

  With its parameters unchanged the weights are the same bytes, on any devices. With
  others, coefficients follow from the numbers in the recipe by the program of the merge.

  Raises:
    InputError: as `open_recipe` and `merge`; other checkpoints than those that were
      merged: by their headers before, by their task vectors while weights are read.
  """
  opened = open_recipe(recipe, output=output, overwrite=overwrite, resume=resume)
  return merge(opened.config, show_progress=show_progress, recipe=opened)
