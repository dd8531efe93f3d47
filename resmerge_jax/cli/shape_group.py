"""Expert groups of published shapes, known from their headers alone."""

from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.group import ExpertGroup, check_group
from resmerge_jax.synthetic import SHAPES
from resmerge_jax.types import TensorRef


def shape_group(shape: str, n_experts: int) -> ExpertGroup:
  """A bfloat16 base of this shape and its experts. There is nothing to read."""
  model = SHAPES[shape]
  tensors = {name: TensorRef(name, 'BF16', size) for name, size in model.tensors()}
  base, *experts = (
    Checkpoint(id=id, path=None, config=model.config('bfloat16'), tensors=tensors)
    for id in (shape, *(f'expert_{i}' for i in range(n_experts)))
  )
  return check_group(base, experts)
