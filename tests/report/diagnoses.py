"""Made-up diagnoses with every field that records may have, and numbers like real ones."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from resmerge_jax.diagnostics.diagnosis import Diagnosis, Finding, GroupDiagnosis

KINDS = {
  'self_attn.q_proj': ('attention', (896, 896)),
  'self_attn.k_proj': ('attention', (128, 896)),
  'self_attn.v_proj': ('attention', (128, 896)),
  'self_attn.o_proj': ('attention', (896, 896)),
  'mlp.gate_proj': ('ffn', (4864, 896)),
  'mlp.up_proj': ('ffn', (4864, 896)),
  'mlp.down_proj': ('ffn', (896, 4864)),
}
MERGE_FACTS = {
  'resmerge_jax': '0.1.0',
  'config': {
    'method': {'name': 'resmerge', 'variant': 'paper', 'rho': 0.2},
    'experts': ['math', 'code'],
    'output_dtype': 'bfloat16',
  },
  'rules': [{'match': ''}],
}


def finding(level: str = 'warning', **changes: Any) -> Finding:
  words = {
    'code': 'near-tie',
    'what': 'the head of code is nearly tied in 3 tensors',
    'consequence': 'which direction counts as the head is decided by rounding',
    'advice': 'raise method.head_rank to 2',
    'tensors': tuple(f'model.layers.{i}.mlp.up_proj.weight' for i in range(3)),
  }
  return Finding(level=level, **{**words, **changes})


def group(
  label: str = 'RL',
  experts: Sequence[str] = ('math', 'code', 'tool'),
  n_layers: int = 24,
  *,
  head_share: float = 0.3,
  k: int = 4,
  seed: int = 0,
  findings: Sequence[Finding] = (),
) -> GroupDiagnosis:
  """Records of n_layers x 7 matrices, a norm per layer and an embedding; all fields."""
  rng = np.random.default_rng(seed)
  n = len(experts)
  records = [
    _vector('model.embed_tokens.weight', 'embed_lm_head', (1000, 896), n, None)
  ]
  for layer in range(n_layers):
    name = f'model.layers.{layer}.input_layernorm.weight'
    records.append(_vector(name, 'norm', (896,), n, layer))
    for kind, (family, shape) in KINDS.items():
      name = f'model.layers.{layer}.{kind}.weight'
      depth = layer / max(n_layers - 1, 1)
      share = head_share * (0.6 + 0.8 * depth) * (1.2 if family == 'attention' else 0.8)
      records.append(
        {'name': name, 'family': family, 'shape': list(shape), 'layer': layer}
        | _matrix(rng, n, k, share, math.prod(shape))
      )
  return GroupDiagnosis(
    label, 'Qwen/Qwen2.5-0.5B', tuple(experts), tuple(records), totals(records),
    tuple(findings), MERGE_FACTS, ('1 tensor is copied: it has no numbers',),
  )  # fmt: skip


def totals(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Those that the summary shows, of equal weight where real ones are by entries."""
  matrices = [record for record in records if 'sigma' in record]
  found: dict[str, Any] = {
    name: np.mean([record[name] for record in matrices], axis=0).tolist()
    for name in (
      'relative_norm', 'zero_fraction', 'below_step', 'cos_delta_pairs', 'sign_conflict',
    )
  }  # fmt: skip
  for name in (
    'energy', 'stable_rank', 'effective_rank', 'c_R', 'S_H', 'retention_head',
    'retention_residual', 'cos_head_pairs', 'cos_residual_pairs',
  ):  # fmt: skip
    values = np.array([record[name] for record in matrices])
    found[name] = {'mean': values.mean(0).tolist(), 'std': values.std(0).tolist()}
  return found


def groups(*made: GroupDiagnosis) -> Diagnosis:
  return Diagnosis(tuple(made))


def without(of_one: GroupDiagnosis, *names: str) -> GroupDiagnosis:
  """The group as it is when its records do not have some fields."""
  records = tuple(
    {key: value for key, value in record.items() if key not in names}
    for record in of_one.records
  )
  return GroupDiagnosis(
    of_one.label, of_one.base, of_one.expert_ids, records,
    {key: value for key, value in of_one.totals.items() if key not in names},
    of_one.findings, None, of_one.notes,
  )  # fmt: skip


def _vector(
  name: str, family: str, shape: tuple[int, ...], n: int, layer: int | None
) -> dict[str, Any]:
  return {
    'name': name,
    'rule': 'task_arithmetic',
    'family': family,
    'shape': list(shape),
    'layer': layer,
    'base_norm': 20.0,
    'delta_norm': [0.01] * n,
    'relative_norm': [0.0005] * n,
    'zero_fraction': [0.9] * n,
    'update_norm': 0.01,
    'rounding_loss': 0.4,
  }


def _matrix(
  rng: np.random.Generator, n: int, k: int, share: float, size: int
) -> dict[str, Any]:
  def wobble(value: float, count: int = n, by: float = 0.1) -> list[float]:
    return (value * np.exp(by * rng.standard_normal(count))).tolist()

  first = np.clip(wobble(share), 0, 0.9)
  rest = np.cumsum(0.5 ** np.arange(1, k))
  energy = [[float(s), *(s + (1 - s) * 0.3 * rest).tolist()] for s in first]
  delta = wobble(0.05)
  sigma = [
    [d * math.sqrt(e[0]), *([d * 0.1] * (k - 1))]
    for d, e in zip(delta, energy, strict=True)
  ]
  n_pairs = len(list(itertools.combinations(range(n), 2)))
  changed = [int(size * f) for f in np.clip(wobble(0.3), 0, 1)]
  return {
    'rule': 'method',
    'base_norm': 12.0,
    'delta_norm': delta,
    'relative_norm': [d / 12.0 for d in delta],
    'zero_fraction': [1 - c / size for c in changed],
    'below_step': np.clip(wobble(0.2), 0, 1).tolist(),
    'changed': changed,
    'shared': [int(0.4 * c) for c in changed],
    'several': changed[0] // 3,
    'sign_conflict': float(np.clip(rng.normal(0.45, 0.05), 0, 1)),
    'cos_delta_pairs': rng.normal(0.1, 0.05, n_pairs).tolist(),
    'sigma': sigma,
    'sigma_next': [s[-1] * 0.9 for s in sigma],
    'gap': [0.1] * n,
    'energy': energy,
    'stable_rank': [1 / e[0] for e in energy],
    'stable_rank_residual': wobble(18.0),
    'effective_rank': wobble(210.0),
    'effective_rank_residual': wobble(290.0),
    'effective_rank_error': [2.0] * n,
    'effective_rank_residual_error': [3.0] * n,
    'effective_rank_by': 'estimate',
    's_R': 0.2,
    'c_R': float(np.clip(rng.normal(0.68, 0.03), 0, 1)),
    'S_H': float(np.clip(rng.normal(0.12, 0.06), 0, 1)),
    'retention_head': float(rng.normal(0.6, 0.04)),
    'retention_residual': float(rng.normal(0.7, 0.02)),
    'cos_head_pairs': np.clip(rng.normal(0.0, 0.25, n_pairs), -1, 1).tolist(),
    'cos_residual_pairs': rng.normal(0.2, 0.04, n_pairs).tolist(),
    'head_error_estimate': [3e-6] * n,
    'certified': [True] * n,
    'float64_head': [False] * n,
    'alpha_R': float(rng.normal(0.86, 0.02)),
    'beta': float(rng.normal(0.8, 0.02)),
    'branch': 'consensus' if rng.random() < 0.9 else 'mean',
    'norm_A': float(rng.normal(0.04, 0.002)),
    'norm_C': float(abs(rng.normal(0.002, 0.0005))),
    'update_norm': float(rng.normal(0.041, 0.002)),
    'distance': wobble(0.04),
    'rounding_loss': float(abs(rng.normal(0.3, 0.05))),
  }  # fmt: skip
