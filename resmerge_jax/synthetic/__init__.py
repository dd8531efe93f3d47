"""Expert groups with the shapes of real models and random weights.

For the quickstart, tests and benchmarks: complete Hugging Face folders, made in
seconds, that behave like a base and its RL-trained experts where a merge looks.
"""

from resmerge_jax.synthetic.group import make_group, reduction_problems
from resmerge_jax.synthetic.shapes import SHAPES, ModelShape

__all__ = ['SHAPES', 'ModelShape', 'make_group', 'reduction_problems']
