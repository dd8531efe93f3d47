"""What a diagnosis says: plain data, which goes to JSON and back, and to the report.

Fields of a record (one per tensor, or per matrix of a batch). Lists have one entry per
expert, in the experts' order; `*_pairs` have one per pair of experts, in the order of
`itertools.combinations`. What could not be measured is absent: tensors that are copied
have `name`, `family`, `rule`, `shape`, `layer` alone, tensors without a head nothing of
the spectrum, and what a merge recorded is less than what `tools.diagnose` measures.
None stands where a number does not exist (a cosine to a zero update). docs/diagnose.md has the
equations.

  name, family, rule, shape       as in records.jsonl
  layer                           number of the decoder layer, None outside them
  base_norm                       ||W_0||
  delta_norm, relative_norm       ||D_i||; ||D_i|| / ||W_0||
  zero_fraction                   share of entries with D_i = 0
  below_step                      share of the changed entries that move by less than
                                  the spacing of the output dtype at W_0
  changed, shared                 RAM's counts: entries with |D_i| over the threshold;
                                  of these the ones that another expert changes too
  several                         entries with D_i != 0 for two experts or more
  sign_conflict                   of these the share in which two have different signs
  cos_delta_pairs                 cos(D_i, D_j)
  sigma, sigma_next, gap          leading singular values (a list of k per expert), the
                                  next, 1 - sigma_next / sigma_k
  energy                          per expert a list for k = 1..K: sum_{j<=k} sigma_j^2 / ||D_i||^2;
                                  beyond the head's rank a bound from below;
                                  None for a zero update
  stable_rank                     ||D_i||^2 / sigma_1^2
  stable_rank_residual            ||R_i||^2 / sigma_{k+1}^2
  effective_rank, effective_rank_residual      exp of the entropy of sigma_j^2 / sum sigma^2
  effective_rank_error, effective_rank_residual_error
                                  one standard error; 0 where exact
  effective_rank_by               'exact' | 'estimate' (one for all experts)
  sample_rank                     numerical rank of a sampled block (see docs)
  s_R, c_R, S_H                   paper, Eq. 8 and 14
  norm_R, norm_H                  ||R_i||, ||H_i||
  retention_head, retention_residual           ||mean X_i|| / mean ||X_i||, Eq. 17
  cos_head_pairs, cos_residual_pairs
  head_error_estimate, certified, float64_head as in records.jsonl
  alpha_R, beta, branch, norm_A, norm_C, update_norm, rounding_loss
                                  of a merge, as in records.jsonl
  distance                        of a merge: ||W_merged - W_i|| per expert
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Level = Literal['error', 'warning', 'note']
LEVELS: tuple[Level, ...] = ('error', 'warning', 'note')  # the gravest first


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing the check-up found, in plain words.

  `code` names the kind ('wrong-base'); `what` is the fact, `consequence` what it does
  to a merge, `advice` what to do. `tensors`: those it is about, () for the whole model.
  """

  level: Level
  code: str
  what: str
  consequence: str
  advice: str
  tensors: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GroupDiagnosis:
  """One base, its experts, and what was measured.

  `records`: see the module. `totals`: the same names over all tensors (`delta_norm`,
  `cos_delta_pairs`, ...), means over matrices as {'mean', 'std', 'min', 'max'}, and
  under 'by_family' and 'by_layer' such totals by family, by layer number (a string).
  `merge`: facts of a merge's manifest.json, None if none was looked at. `notes`: what
  is absent, and why.
  """

  label: str
  base: str
  expert_ids: tuple[str, ...]
  records: tuple[dict[str, Any], ...]
  totals: dict[str, Any]
  findings: tuple[Finding, ...] = ()
  merge: dict[str, Any] | None = None
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """Groups to be read side by side, in the user's order."""

  groups: tuple[GroupDiagnosis, ...]


def to_plain(diagnosis: Diagnosis) -> dict[str, Any]:
  """For json.dump."""
  return dataclasses.asdict(diagnosis)


def from_plain(plain: Mapping[str, Any]) -> Diagnosis:
  """What `to_plain` made, also after JSON."""

  def finding(of_one: Mapping[str, Any]) -> Finding:
    return Finding(**{**of_one, 'tensors': tuple(of_one['tensors'])})

  def group(of_one: Mapping[str, Any]) -> GroupDiagnosis:
    lists = ('expert_ids', 'records', 'notes')
    tuples = {key: tuple(of_one[key]) for key in lists}
    found = tuple(map(finding, of_one['findings']))
    return GroupDiagnosis(**{**of_one, **tuples, 'findings': found})

  return Diagnosis(tuple(map(group, plain['groups'])))
