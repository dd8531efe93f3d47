"""Parameters of ResMerge (arXiv 2606.02252), by the symbols of the paper."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from resmerge_jax.errors import InputError
from resmerge_jax.types import Family

FAMILY_SCALE = {  # f in the score; paper: A.2
  'paper': {'attention': 1.0, 'ffn': 0.25, 'other': 0.0},
  'release': {'attention': 1.0, 'ffn': 1.0, 'other': 0.0},
  'release_initial': {'attention': 1.0, 'ffn': 0.25, 'other': 0.0},
}
CHOICES = {
  'variant': tuple(FAMILY_SCALE),
  'head_gate': ('agreement', 'none', 'conflict'),
  'backbone': ('consensus', 'mean', 'none'),
}
MAX_RANK = 64  # the solver keeps k + 3 vectors per block


@dataclasses.dataclass(frozen=True)
class ResMerge:
  """Symbols of the paper, Eq. 6-16.

  `variant`: the paper's equations, or what the authors' code made of them.
  `head_rank`: k, leading singular triplets of each expert.
  `beta_min`: retention exponent where residuals agree.
  `beta_max`: retention exponent where they do not.
  `rho`: budget of the heads relative to the backbone. `eps`: epsilon.
  `head_gate`: 'agreement' is S_H of Eq. 14; 'none' puts 1 in its place (same budget);
  'conflict' (ours) the mean over pairs of 1 + min(cos(H_i, H_j), 0), which heads at
  right angles leave open.
  `backbone`: 'consensus' is A of Eq. 12; 'mean' the mean residual; 'none' leaves the
  residuals out and adds the mean head whole (the paper's ablations, Table 2).
  `family_scale`: families that differ from the variant's own (FAMILY_SCALE); kept as
  sorted items, to be hashable.
  """

  variant: Literal['paper', 'release', 'release_initial'] = 'paper'
  head_rank: int = 1
  beta_min: float = 0.7
  beta_max: float = 1.0
  rho: float = 0.2
  family_scale: Mapping[str, float] | tuple[tuple[str, float], ...] | None = None
  head_gate: Literal['agreement', 'none', 'conflict'] = 'agreement'
  backbone: Literal['consensus', 'mean', 'none'] = 'consensus'
  eps: float = 1e-8

  def __post_init__(self) -> None:
    checks = {name: getattr(self, name) in names for name, names in CHOICES.items()}
    checks[f'1 <= head_rank <= {MAX_RANK}'] = 1 <= self.head_rank <= MAX_RANK
    checks['0 <= beta_min <= beta_max'] = 0 <= self.beta_min <= self.beta_max
    checks['0 <= rho, finite'] = 0 <= self.rho < math.inf
    checks['0 <= eps, finite'] = 0 <= self.eps < math.inf
    if self.family_scale is not None:
      scale = dict(self.family_scale)
      checks['family_scale (attention, ffn, other: finite numbers)'] = set(
        scale
      ) <= set(FAMILY_SCALE['paper']) and all(
        isinstance(f, int | float) and math.isfinite(f) for f in scale.values()
      )
      object.__setattr__(self, 'family_scale', tuple(sorted(scale.items())))
    wrong = [
      f'{check}: got {getattr(self, field)!r}'
      + (f', expected {" | ".join(CHOICES[field])}' if field in CHOICES else '')
      for check, ok in checks.items()
      for field in dataclasses.asdict(self)
      if not ok and field in check.replace(',', ' ').split()
    ]
    if wrong:
      raise InputError('resmerge: parameters out of range', wrong)

  def scale_of(self, family: Family | None) -> float:
    """f of Eq. 9 as A.2 sets it. Matrices of any further family count as 'other'."""
    scale = FAMILY_SCALE[self.variant] | dict(self.family_scale or {})
    return scale.get(family or 'other', scale['other'])
