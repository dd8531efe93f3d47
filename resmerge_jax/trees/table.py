"""All layouts by name."""

from resmerge_jax.trees.maxtext import MAXTEXT, MAXTEXT_SCANNED
from resmerge_jax.trees.nnx import NNX
from resmerge_jax.trees.tree import Layout
from resmerge_jax.trees.tunix import TUNIX

HF = Layout('hf')  # one leaf per tensor, under its own name and in its own shape
LAYOUTS = {each.name: each for each in (HF, NNX, MAXTEXT, MAXTEXT_SCANNED, TUNIX)}
