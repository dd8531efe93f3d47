"""What a recipe keeps of each tensor of a plan, and which plans have one."""

from collections.abc import Mapping

from resmerge_jax.checkpoint.summary import fold_names
from resmerge_jax.errors import InputError
from resmerge_jax.methods.table import method_of, post_of
from resmerge_jax.pipeline.kernel_spec import KernelSpec, step_spec
from resmerge_jax.pipeline.recipe import OpenRecipe
from resmerge_jax.pipeline.work import computes
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.plan.recipe_layout import Parts, part_name


def recipe_parts(plan: MergePlan) -> Parts:
  """Shapes of the arrays of all tensors that are not copied.

  Where experts lack rows of a tensor, coefficients differ between its blocks of rows:
  an entry holds from its row on.

  Raises:
    InputError: updates that have no form which a recipe could keep.
  """
  found: dict[tuple[str, int], Mapping[str, tuple[int, ...]]] = {}
  dense: dict[str, list[str]] = {}
  known: set[tuple[str, tuple[bool, ...]]] = set()
  for step in filter(computes, plan.steps):
    shapes = _shapes(step_spec(step))
    for name in step.names:
      if shapes is None:
        dense.setdefault(str(step.stack.chosen), []).append(name)
      elif (name, step.present) not in known:
        known.add((name, step.present))
        found[name, step.row_start] = shapes
  if dense:
    raise InputError(
      'save_recipe: updates that are no few coefficients and vectors',
      [
        f'{how}: {", ".join(text for text, _ in fold_names(dict.fromkeys(names)))}'
        for how, names in dense.items()
      ],
      why='a recipe keeps sums of task vectors and rank-one terms, from which base and '
      'experts give the merge again; these methods decide entry by entry',
      fix='leave save_recipe out, or take resmerge, task_arithmetic, linear or another '
      'method of docs/recipes.md',
    )
  return found


def check_recipe(recipe: OpenRecipe, plan: MergePlan) -> None:
  """Raises InputError unless the recipe has all that this plan needs of it."""
  wrong = [
    f'{name}: no {part} of shape {list(shape)}'
    for (name, row), shapes in recipe_parts(plan).items()
    for part, shape in shapes.items()
    if getattr(recipe.arrays.get(part_name(name, row, part)), 'shape', None) != shape
  ]
  if wrong:
    raise InputError(
      f'recipe {recipe.path}: it does not fit this merge',
      wrong,
      why='this version of resmerge_jax would merge otherwise than the one that saved it',
      fix='merge again with --save_recipe',
    )


def _shapes(spec: KernelSpec) -> Mapping[str, tuple[int, ...]] | None:
  """By name, of one matrix; None for an update without that form."""
  n, method = spec.n_experts, method_of(spec.params)
  terms = method.terms(spec.params, n, spec.head_rank)
  if terms is None or not all(post_of(post).keeps_form for post in spec.post):
    return None
  shapes: dict[str, tuple[int, ...]] = {'a_N': (n,)}
  if terms:
    vectors = {'u_TxR': (terms, spec.rows), 'v_TxC': (terms, spec.cols)}
    shapes |= {'w_T': (terms,), **vectors}
  return shapes | dict(method.refit.shapes(n) if method.refit else {})
