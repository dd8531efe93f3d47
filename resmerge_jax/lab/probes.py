"""What is behind a merge: parts of one expert, other k and rho, the group's geometry."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resmerge_jax.lab.merges import Loaded, Right, Tensors, merged, score_merge
from resmerge_jax.lab.variants import PAPER, Entry
from resmerge_jax.pipeline.state_dicts import merge_state_dicts
from resmerge_jax.plan.rules import layer_of

Record = Mapping[str, Any]  # of a tensor, as a merge keeps it
PARTS = {'head': 'head_only', 'residual': 'residual_only'}
RANKS = (1, 2, 4, 8, 16)
BUDGETS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)


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
      group, merged(group, Entry('', {**PAPER, 'head_rank': k})).tensors
    )
    for k in RANKS
  }


def score_budgets(group: Loaded, gate: str) -> dict[str, Right]:
  """ResMerge of the paper by the heads' budget rho (Figure 3)."""
  none, whole = (
    merged(group, Entry('', {**PAPER, 'head_gate': gate, 'rho': rho})).tensors
    for rho in (0.0, 1.0)
  )
  # The update is linear in rho (Eq. 15): two merges give them all.
  return {
    f'rho = {rho:g}': score_merge(group, _between(none, whole, rho)) for rho in BUDGETS
  }


def _between(a: Tensors, b: Tensors, share: float) -> dict[str, np.ndarray]:
  return {name: x + share * (b[name] - x) for name, x in a.items()}


def geometry(group: Loaded, records: Sequence[Record]) -> dict[str, float]:
  """Of the group, and means over hidden matrices of what ResMerge recorded.

  `cosine`: of whole task vectors, mean over pairs. `zeros`: entries that are exactly
  the base's, of all. The others as `by_layer`.
  """
  gram_NxN, zeros = np.zeros((len(group.experts),) * 2), []
  for name, base in group.base.items():  # tensor by tensor: a model may be large
    delta_NxE = np.array(
      [(x[name] - base).ravel() for x in group.experts.values()], float
    )
    gram_NxN += delta_NxE @ delta_NxE.T
    zeros.append((delta_NxE == 0).mean() * base.size)
  norm_N = _positive(np.sqrt(np.diag(gram_NxN)))
  cosine_NxN = gram_NxN / np.outer(norm_N, norm_N)
  return {
    'cosine': float(cosine_NxN[np.triu_indices(len(norm_N), 1)].mean()),
    **_means(_hidden(records)),
    'zeros': float(sum(zeros) / sum(base.size for base in group.base.values())),
  }


def by_layer(records: Sequence[Record]) -> dict[str, dict[str, float]]:
  """Means over the hidden matrices of each layer (Figures 4 and 5).

  `head share`: sigma_1^2 / ||D||^2, of the mean expert.
  """
  found: dict[str, list[Record]] = {}
  for record in _hidden(records):
    found.setdefault(str(layer_of(record['name'])), []).append(record)
  return {layer: _means(found[layer]) for layer in sorted(found, key=int)}


def _hidden(records: Sequence[Record]) -> list[Record]:
  return [record for record in records if record['rule'] == 'method']


def _means(matrices: Sequence[Record]) -> dict[str, float]:
  head = [
    np.square(np.array(r['sigma'])[:, 0] / _positive(r['delta_norm'])).mean()
    for r in matrices
  ]
  fields = ('s_R', 'c_R', 'S_H', 'alpha_R')
  return {
    **{field: float(np.mean([r[field] for r in matrices])) for field in fields},
    'head share': float(np.mean(head)),
  }


def _positive(norm: Any) -> Any:
  """Of an expert that changed nothing all shares are 0."""
  return np.maximum(norm, np.finfo(float).tiny)
