"""The check-up: what in a group will spoil or blunt a merge, said plainly.

Each check is a function of `Checked` that returns findings; numbers that it decides by
stand above it. What was not measured is not judged.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from resmerge_jax.diagnostics.diagnosis import LEVELS, Finding


@dataclasses.dataclass(frozen=True)
class Checked:
  """What checks look at. `totals` as `totals_of` makes them."""

  expert_ids: tuple[str, ...]
  records: tuple[Mapping[str, Any], ...]
  totals: Mapping[str, Any]
  output_dtype: str

  @property
  def matrices(self) -> list[Mapping[str, Any]]:
    """Records with a head."""
    return [record for record in self.records if 'sigma' in record]

  @property
  def changes(self) -> list[bool]:
    """Whether an expert differs from the base at all."""
    return [x > 0 for x in self.totals.get('delta_norm', ())]

  def distances(self) -> dict[tuple[int, int], float]:
    """||W_i - W_j|| of all pairs, of experts that change something."""
    norms, cosines = self.totals['delta_norm'], self.totals.get('cos_delta_pairs', ())
    pairs = itertools.combinations(range(len(norms)), 2)
    return {
      (i, j): math.sqrt(
        max(norms[i] ** 2 + norms[j] ** 2 - 2 * c * norms[i] * norms[j], 0.0)
      )
      for (i, j), c in zip(pairs, cosines, strict=False)
      if c is not None
    }


def check_up(checked: Checked) -> tuple[Finding, ...]:
  """All findings, the gravest first."""
  found = [finding for check in CHECKS for finding in check(checked)]
  return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def single(checked: Checked) -> Iterator[Finding]:
  if len(checked.expert_ids) == 1:
    yield Finding(
      'warning',
      'one-expert',
      f'There is one expert, {checked.expert_ids[0]}.',
      'Nothing can agree or conflict. ResMerge does not return the expert itself: it '
      'replaces its head by one of rho times the norm of the residual.',
      'Add the other experts, or use the expert as it is.',
    )


def unchanged(checked: Checked) -> Iterator[Finding]:
  for i, changes in enumerate(checked.changes):
    if not changes:
      yield Finding(
        'error',
        'unchanged',
        f'{checked.expert_ids[i]} is equal to the base in every tensor.',
        'It brings nothing, but counts as one of the experts: means shrink, and '
        "ResMerge's coherence falls for all others.",
        'Check its path: it may be the base itself, or a checkpoint from before '
        'training. Leave it out.',
      )


NO_DISTANCE = 1e-3  # of the longer update: closer is the same, by float32 sums


def duplicates(checked: Checked) -> Iterator[Finding]:
  for (i, j), distance in _near(checked, NO_DISTANCE):
    a, b = checked.expert_ids[i], checked.expert_ids[j]
    yield Finding(
      'error',
      'duplicates',
      f'{a} and {b} hold the same weights, or nearly (their distance is {distance:.0e} '
      'of the length of the update).',
      'One update counts twice, and their perfect agreement raises s_R, c_R and S_H of '
      'the whole group.',
      'Leave one of them out, or correct its path.',
    )


def wrong_base(checked: Checked) -> Iterator[Finding]:
  if not any(checked.changes):
    return
  norms = checked.totals['delta_norm']
  same = {pair for pair, _ in _near(checked, NO_DISTANCE)}
  near = {
    pair: distance
    for pair, distance in checked.distances().items()
    if pair not in same and distance < max(norms[pair[0]], norms[pair[1]])
  }
  closest: dict[int, tuple[float, int]] = {}
  for (i, j), distance in near.items():
    for a, b in ((i, j), (j, i)):
      if distance < norms[a]:
        closest[a] = min(closest.get(a, (math.inf, 0)), (distance, b))
  # Of another base all experts are alike; some that are may be trained alike.
  all_are = len(closest) == sum(checked.changes)
  for a, (distance, b) in sorted(closest.items()):
    # A short update beside a long one alike is no sign of another base.
    if distance < norms[b]:
      who, other = checked.expert_ids[a], checked.expert_ids[b]
      yield Finding(
        'error' if all_are else 'warning',
        'wrong-base',
        f'{who} is closer to {other} than to the base (distance {distance:.3g}, to the '
        f'base {norms[a]:.3g}).',
        'The experts share a change that the base lacks: it looks as if they were '
        'trained from another base. What they share is then taken for agreement, and '
        'heads and residuals describe the difference of two bases.',
        'Give the model that these experts were trained from as --base (an instruct or '
        'SFT checkpoint, say, not the pretrained one). If the base is right, they were '
        'trained on nearly the same data.',
      )


OPPOSITE = -0.5  # cosine of whole updates


def opposite(checked: Checked) -> Iterator[Finding]:
  pairs = itertools.combinations(checked.expert_ids, 2)
  for (a, b), cosine in zip(
    pairs, checked.totals.get('cos_delta_pairs', ()), strict=False
  ):
    if cosine is not None and cosine < OPPOSITE:
      yield Finding(
        'warning',
        'opposite',
        f'The updates of {a} and {b} point against each other (cosine {cosine:.2f}).',
        'In any mean or consensus they cancel: what is left is small, and its '
        'direction mostly noise.',
        'Check that neither was made by subtracting weights. If both are meant so, '
        'choose one of them, or give them weights.',
      )


LARGE = 0.05  # norm of an update relative to the weights


def large_update(checked: Checked) -> Iterator[Finding]:
  for who, norm in zip(
    checked.expert_ids, checked.totals.get('relative_norm', ()), strict=False
  ):
    if norm is not None and norm > LARGE:
      yield Finding(
        'warning',
        'large-update',
        f'{who} moves the weights by {norm:.0%} of their norm.',
        'RL with a small step moves them by a few percent at most; this is the size of '
        'supervised fine-tuning or of continued pretraining. Updates of such length '
        'interfere where small ones add up, and in a mean it drowns shorter ones.',
        'Check that this is the RL checkpoint and that the base is its own. If it is '
        'meant so, compare with a method made for large updates (ties, tsv).',
      )


LOW_RANK = 32  # of a sampled block of 64 x 64
MOSTLY = 0.5  # share of zeros above which a sample says nothing of the rank
SIDE = 64


def lora_like(checked: Checked) -> Iterator[Finding]:
  wide = [r for r in checked.matrices if min(r['shape'][-2:]) >= SIDE]
  for i, who in enumerate(checked.expert_ids):
    seen = [r for r in wide if 'sample_rank' in r and r['delta_norm'][i] > 0]
    if not seen or any(r['zero_fraction'][i] > MOSTLY for r in seen):
      continue
    rank = max(r['sample_rank'][i] for r in seen)
    if rank <= LOW_RANK:
      yield Finding(
        'warning',
        'lora-like',
        f'{who} has numerical rank {rank} or less in all {len(seen)} matrices that it '
        'changes.',
        'It is a LoRA adapter, or was merged from one. Its spectrum is that of the '
        'adapter: energies and stable ranks do not compare with those of full '
        'training, and a head of rank k takes a large part of it.',
        'Merge adapters of one kind together; keep head_rank well below the rank of '
        'the adapter, or use task_arithmetic.',
      )


NO_RESIDUAL = 1e-3  # ||R|| / ||D||


def erased(checked: Checked) -> Iterator[Finding]:
  lost = []
  for record in checked.matrices:
    pairs = zip(record.get('norm_R', ()), record['delta_norm'], strict=False)
    parts = [r / d for r, d in pairs if d > 0]
    if parts and max(parts) < NO_RESIDUAL:
      lost.append(record['name'])
  if lost:
    k = len(checked.matrices[0]['sigma'][0])
    yield Finding(
      'error',
      'erased',
      f'In {_count(lost)} all updates have rank {k} or less: the head is the whole '
      'update.',
      'ResMerge builds on residuals, and there are none: these tensors come out as in '
      'the base, whatever the experts learned.',
      'Give these tensors to task_arithmetic by a rule, or choose a smaller head_rank.',
      tuple(lost),
    )


HALF = 0.5


def below_step(checked: Checked) -> Iterator[Finding]:
  dtype = checked.output_dtype
  for who, share in zip(
    checked.expert_ids, checked.totals.get('below_step', ()), strict=False
  ):
    if share is not None and share > HALF:
      yield Finding(
        'warning',
        'below-step',
        f'{share:.0%} of the entries that {who} changes move by less than one step of '
        f'{dtype} at the weight.',
        f'Written as {dtype} such a change is mostly rounded away, or up to a whole '
        'step; averaging makes it smaller still.',
        'Merge with --output_dtype=float32, and look at rounding_loss afterwards.',
      )


NEAR_TIE = 0.01  # of sigma_k


def near_ties(checked: Checked) -> Iterator[Finding]:
  tied = [
    record['name']
    for record in checked.matrices
    if any(
      gap < NEAR_TIE and norm > 0 and last > 0
      for gap, norm, (*_, last) in zip(
        record['gap'], record['delta_norm'], record['sigma'], strict=True
      )
    )
  ]
  if tied:
    yield Finding(
      'note',
      'near-tie',
      f'In {_count(tied)} the head of some expert ends at a near tie: sigma_k and '
      f'sigma_k+1 differ by less than {NEAR_TIE:.0%}.',
      'Which directions are head and which residual then hangs on digits of the '
      'weights: another tool, or another dtype, may give another split.',
      'No action is needed for the merge, which solves them in float64 where float32 '
      'does not do. Do not read much into these heads; another head_rank may end at a '
      'gap.',
      tuple(tied),
    )


UNSURE = 1e-4  # of s_R, beside what float32 leaves uncertain


def on_edge(checked: Checked) -> Iterator[Finding]:
  """The release's rule jumps at c_R = 1/sqrt N, that is s_R = (N - M) / (N (N - 1))."""
  n = len(checked.expert_ids)
  names = []
  for record in checked.matrices:
    if n > 1 and 's_R' in record and 'norm_R' in record:
      there = sum(norm > 0 for norm in record['norm_R'])
      edge = (n - there) / (n * (n - 1))
      if there and abs(record['s_R'] - edge) < UNSURE:
        names.append(record['name'])
  if names:
    yield Finding(
      'note',
      'release-edge',
      f'In {_count(names)} the residuals agree by chance alone (s_R within {UNSURE:g} '
      'of where c_R is 1/sqrt N).',
      f'The released code decides there between mean and consensus: the length of the '
      f'update jumps by {jump(n):.0%}, and rounding decides which it is. The '
      "paper's rule has no such jump.",
      "Expect two right implementations of variant='release' to differ in these "
      "tensors; variant='paper' is smooth.",
      tuple(names),
    )


def jump(n: int) -> float:
  """How much longer A is on the consensus branch, of equal norms (attention, ffn)."""
  c = n**-0.5
  score = ((1 / 2) + (c + 1) / 2) / 2
  return c ** (1.0 - 0.3 * score) / c - 1


LOST = 0.2  # ||rounding|| / ||update||


def rounding_lost(checked: Checked) -> Iterator[Finding]:
  loss = checked.totals.get('rounding_loss')
  if loss is not None and loss > LOST:
    yield Finding(
      'warning',
      'rounding-loss',
      f'Rounding to {checked.output_dtype} changed the merged update by {loss:.0%} of '
      'its norm.',
      'The model that was written is the merge plus noise of that size.',
      'Merge with --output_dtype=float32 and compare the two in an evaluation.',
    )


CHECKS: tuple[Callable[[Checked], Iterator[Finding]], ...] = (
  single, unchanged, duplicates, wrong_base, opposite, erased, large_update, lora_like,
  below_step, rounding_lost, near_ties, on_edge,
)  # fmt: skip


def _near(checked: Checked, share: float) -> Iterator[tuple[tuple[int, int], float]]:
  """Pairs closer than `share` of the longer update, and by how much of it."""
  if not any(checked.changes):
    return
  norms = checked.totals['delta_norm']
  for (i, j), distance in checked.distances().items():
    longer = max(norms[i], norms[j])
    if distance <= share * longer:
      yield (i, j), distance / longer


def _count(names: Sequence[str]) -> str:
  return f'{len(names)} {"tensor" if len(names) == 1 else "tensors"}'
