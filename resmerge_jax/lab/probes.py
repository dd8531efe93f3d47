"""What is behind a merge: parts of one expert, other k and rho, the group's geometry."""

from typing import Any

import numpy as np

from resmerge_jax.lab.merges import Loaded, Right, Tensors, merged, score_merge
from resmerge_jax.lab.variants import Entry
from resmerge_jax.pipeline.state_dicts import merge_state_dicts

PARTS = {'head': 'head_only', 'residual': 'residual_only'}
RANKS = (1, 2, 4, 8, 16)
BUDGETS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
_PAPER = {'name': 'resmerge', 'variant': 'paper'}


def score_parts(group: Loaded) -> dict[str, dict[str, np.ndarray]]:
  """Per expert: answers on its own task with its head alone, and without its head.

  Tensors that have no head are the expert's. ResMerge paper, Figures 1 and 6.
  """
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, tensors in group.experts.items():
    _, task = group.recipe.experts[name]
    found[name] = {}
    for part, method in PARTS.items():
      # Of a group of one, so that a program serves all experts.
      alone = merge_state_dicts(group.base, {name: tensors}, method)
      found[name][part] = score_merge(group, alone.tensors, tasks=[task])[task]
  return found


def score_ranks(group: Loaded) -> dict[str, Right]:
  """ResMerge of the paper by head rank k (Figure 3)."""
  return {
    f'k = {k}': score_merge(
      group, merged(group, Entry('', {**_PAPER, 'head_rank': k})).tensors
    )
    for k in RANKS
  }


def score_budgets(group: Loaded, gate: str) -> dict[str, Right]:
  """ResMerge of the paper by the heads' budget rho (Figure 3)."""
  none, whole = (
    merged(group, Entry('', {**_PAPER, 'head_gate': gate, 'rho': rho})).tensors
    for rho in (0.0, 1.0)
  )
  # The update is linear in rho (Eq. 15): two merges give them all.
  return {
    f'rho = {rho:g}': score_merge(group, _between(none, whole, rho)) for rho in BUDGETS
  }


def _between(a: Tensors, b: Tensors, share: float) -> dict[str, np.ndarray]:
  return {name: x + share * (b[name] - x) for name, x in a.items()}


def geometry(group: Loaded, records: list[dict[str, Any]]) -> dict[str, float]:
  """Means over hidden matrices of what ResMerge recorded, and of whole task vectors.

  `cosine`: of whole task vectors, mean over pairs. `zeros`: entries that are exactly
  the base's, of all. `head share`: sigma_1^2 / ||D||^2.
  """
  matrices = [record for record in records if record['rule'] == 'method']

  def mean(field: str) -> float:
    return float(np.mean([record[field] for record in matrices]))

  deltas = [
    np.concatenate([(x - group.base[name]).ravel() for name, x in expert.items()])
    for expert in group.experts.values()
  ]
  head = [
    np.square(np.array(r['sigma'])[:, 0] / _positive(r['delta_norm'])).mean()
    for r in matrices
  ]
  return {
    'cosine': _mean_cosine(deltas),
    's_R': mean('s_R'),
    'c_R': mean('c_R'),
    'S_H': mean('S_H'),
    'alpha_R': mean('alpha_R'),
    'head share': float(np.mean(head)),
    'zeros': float(np.mean([(delta == 0).mean() for delta in deltas])),
  }


def _mean_cosine(vectors: list[np.ndarray]) -> float:
  units = np.array([v / _positive(np.linalg.norm(v.astype(float))) for v in vectors])
  return float((units @ units.T)[np.triu_indices(len(units), 1)].mean())


def _positive(norm: Any) -> Any:
  """Of an expert that changed nothing all shares are 0."""
  return np.maximum(norm, np.finfo(float).tiny)
