"""Names and layouts of Hugging Face tensors beside those of the decoder's parameters.

`how` tells both layouts in shape letters (models/layers.py): 'NH D -> D N H' is stored
as a matrix [N * H, D], and a kernel [D, N, H] here.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from resmerge_jax.models.axes import Path, name_of

LAYER = '{i}'  # the layer's number, in both names


class Rule(NamedTuple):
  """One tensor: its Hugging Face name, its path with dots, and the two layouts."""

  hf: str
  path: str
  how: str


_TOP = (
  ('model.embed_tokens.weight', 'embed.embedding', 'V D -> V D'),
  ('model.norm.weight', 'final_norm.scale', 'D -> D'),
  ('lm_head.weight', 'lm_head.kernel', 'V D -> D V'),
)
_OF_LAYER = (
  ('input_layernorm.weight', 'attn_norm.scale', 'D -> D'),
  ('self_attn.q_proj.weight', 'attn.q.kernel', 'NH D -> D N H'),
  ('self_attn.q_proj.bias', 'attn.q.bias', 'NH -> N H'),
  ('self_attn.k_proj.weight', 'attn.k.kernel', 'KH D -> D K H'),
  ('self_attn.k_proj.bias', 'attn.k.bias', 'KH -> K H'),
  ('self_attn.v_proj.weight', 'attn.v.kernel', 'KH D -> D K H'),
  ('self_attn.v_proj.bias', 'attn.v.bias', 'KH -> K H'),
  ('self_attn.o_proj.weight', 'attn.o.kernel', 'D NH -> N H D'),
  ('self_attn.o_proj.bias', 'attn.o.bias', 'D -> D'),
  ('self_attn.q_norm.weight', 'attn.q_norm.scale', 'H -> H'),
  ('self_attn.k_norm.weight', 'attn.k_norm.scale', 'H -> H'),
  ('post_attention_layernorm.weight', 'mlp_norm.scale', 'D -> D'),
  ('mlp.gate_proj.weight', 'mlp.gate.kernel', 'F D -> D F'),
  ('mlp.gate_proj.bias', 'mlp.gate.bias', 'F -> F'),
  ('mlp.up_proj.weight', 'mlp.up.kernel', 'F D -> D F'),
  ('mlp.up_proj.bias', 'mlp.up.bias', 'F -> F'),
  ('mlp.down_proj.weight', 'mlp.down.kernel', 'D F -> F D'),
  ('mlp.down_proj.bias', 'mlp.down.bias', 'D -> D'),
)
RULES = (
  *(Rule(*row) for row in _TOP),
  *(
    Rule(f'model.layers.{LAYER}.{hf}', f'layers.{LAYER}.{path}', how)
    for hf, path, how in _OF_LAYER
  ),
)
_BY_PATH = {rule.path: rule for rule in RULES}


class Place(NamedTuple):
  """Where the parameter at `path` is stored: tensor `name`, of shape `hf_shape`.

  `split`: the stored tensor with a dimension per letter. `axes`: the parameter's axis
  of each of them.
  """

  path: Path
  name: str
  leaf_shape: tuple[int, ...]
  hf_shape: tuple[int, ...]
  split: tuple[int, ...]
  axes: tuple[int, ...]

  def to_leaf(self, part: np.ndarray) -> np.ndarray:
    """A part of the split tensor as it lies in the parameter, contiguous."""
    return _contiguous(part.transpose(np.argsort(self.axes)))

  def from_leaf(self, leaf: np.ndarray) -> np.ndarray:
    """The stored tensor of a whole parameter, contiguous."""
    return _contiguous(leaf.transpose(self.axes)).reshape(self.hf_shape)


def _contiguous(array: np.ndarray) -> np.ndarray:
  """As integers, because numpy copies ml_dtypes arrays element by element."""
  bits = np.ascontiguousarray(array.view(f'u{array.itemsize}'))
  return bits.view(array.dtype)


def places(shapes: Mapping[Path, tuple[int, ...]]) -> list[Place]:
  """Of each parameter, given its shape; in the order of the forward pass."""
  order = {rule.path: n for n, rule in enumerate(RULES)}
  found = sorted(shapes, key=lambda path: _rank(path, order))
  return [_place(path, shapes[path]) for path in found]


def _place(path: Path, shape: tuple[int, ...]) -> Place:
  rule = _BY_PATH[name_of(path, LAYER)]
  rows, letters = (side.split() for side in rule.how.split('->'))
  size = dict(zip(letters, shape, strict=True))
  stored = ''.join(rows)
  return Place(
    path,
    rule.hf.replace(LAYER, str(_layer(path))),
    shape,
    tuple(math.prod(size[letter] for letter in row) for row in rows),
    tuple(size[letter] for letter in stored),
    tuple(letters.index(letter) for letter in stored),
  )


def _layer(path: Path) -> int:
  return next((part for part in path if isinstance(part, int)), -1)


def _rank(path: Path, order: Mapping[str, int]) -> tuple[int, int, int]:
  """Embedding, the layers in turn, what follows them."""
  layer, place = _layer(path), order[name_of(path, LAYER)]
  part = 1 if layer >= 0 else 0 if path[0] == 'embed' else 2
  return part, layer, place
