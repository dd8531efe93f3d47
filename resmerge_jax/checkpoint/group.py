"""A base and its experts: whether their headers allow a merge, tensor by tensor."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from resmerge_jax.checkpoint.adapter import Lora, match_adapter
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.group_files import config_warnings, tokenizer_warnings
from resmerge_jax.checkpoint.model_config import (
  ARCHITECTURE_FIELDS,
  config_differences,
  ties_embeddings,
)
from resmerge_jax.checkpoint.tied_head import find_head, head_warnings, match_head
from resmerge_jax.errors import InputError
from resmerge_jax.types import TensorRef

VocabPolicy = Literal['error', 'base_rows', 'pad']

_VOCABULARY = re.compile(r'(embed_tokens|wte|lm_head|word_embeddings)\.weight$')


@dataclasses.dataclass(frozen=True)
class ExpertGroup:
  """Checkpoints that can be merged. Source 0 is the base, source i the i-th expert.

  `aliases[i][name]` names the tensor in which source i stores output tensor `name`,
  where that is not `name` itself: the embedding, for an expert that ties its head; all
  that an adapter stores whole. `loras[i][name]` is the update of an adapter. What it
  has neither of is the base's.
  """

  base: Checkpoint
  experts: tuple[Checkpoint, ...]
  vocab: VocabPolicy = 'error'
  warnings: tuple[str, ...] = ()
  aliases: Mapping[int, Mapping[str, str]] = dataclasses.field(default_factory=dict)
  loras: Mapping[int, Mapping[str, Lora]] = dataclasses.field(default_factory=dict)

  @property
  def sources(self) -> tuple[Checkpoint, ...]:
    return (self.base, *self.experts)

  @property
  def names(self) -> tuple[str, ...]:
    """Output tensors, in the base's order."""
    return tuple(self.base.tensors)

  def ref(self, i: int, name: str) -> TensorRef:
    """Where source i stores output tensor `name`; the base's, if `stores` is False."""
    stored = self.aliases.get(i, {}).get(name, name)
    return self.sources[i if self.stores(i, name) else 0].tensors[stored]

  def stores(self, i: int, name: str) -> bool:
    """Whether source i has the whole tensor `name`; an adapter need not."""
    return self.sources[i].adapter is None or name in self.aliases.get(i, {})

  def lora(self, i: int, name: str) -> Lora | None:
    """The update of tensor `name` that source i stores as factors."""
    return self.loras.get(i, {}).get(name)

  def out_shape(self, name: str) -> tuple[int, ...]:
    """The base's shape; with `pad` a vocabulary tensor has the most rows of any."""
    shape = self.base.tensors[name].shape
    if self.vocab != 'pad' or not is_vocabulary(name, shape):
      return shape
    n_rows = max(self.ref(i, name).shape[0] for i in range(len(self.sources)))
    return (n_rows, *shape[1:])

  @functools.cached_property
  def uneven(self) -> tuple[str, ...]:
    """Vocabulary tensors of which some source has more or fewer rows than the base."""
    return tuple(
      name
      for name, ref in self.base.tensors.items()
      if is_vocabulary(name, ref.shape)
      and any(self.ref(i, name).shape != ref.shape for i in range(1, len(self.sources)))
    )


def is_vocabulary(name: str, shape: Sequence[int]) -> bool:
  """Whether the rows of this tensor are tokens."""
  return len(shape) == 2 and bool(_VOCABULARY.search(name))


def check_group(
  base: Checkpoint, experts: Sequence[Checkpoint], vocab: VocabPolicy = 'error'
) -> ExpertGroup:
  """The group of `base` and `experts`, all disagreements judged from their headers.

  Args:
    base: what the experts were trained from; names and shapes of the output are its.
    experts: at least one, with different ids.
    vocab: what to do where embeddings and heads differ in rows only. 'error': refuse.
      'base_rows': the output has the base's rows; further rows of an expert are
      ignored, rows that it lacks count as unchanged. 'pad': the output has the most
      rows of any; a row is averaged over the experts that have it.

  Raises:
    InputError: names, shapes or kinds of number differ, listing every tensor.
  """
  experts = tuple(experts)
  _check_ids(experts)
  if not base.tensors:
    raise InputError(f'base {base.id!r} holds no tensors')
  if base.adapter is not None:
    raise InputError(
      f'base {base.id!r}: a LoRA adapter, not a model',
      fix='give the model that it was trained from; adapters go into --experts',
    )
  warnings = head_warnings(base)
  aliases: dict[int, Mapping[str, str]] = {}
  loras: dict[int, Mapping[str, Lora]] = {}
  problems: list[_Problem] = []
  for i, expert in enumerate(experts, 1):
    if expert.adapter is not None:
      matched = match_adapter(base, expert)
      aliases[i], loras[i] = matched.wholes, matched.loras
      problems += [_Problem(expert.id, text) for text in matched.problems]
      problems += _shape_problems(base, expert, matched.wholes, vocab)
      warnings += matched.warnings
      continue
    alias, ignored, tied_warnings = match_head(base, expert)
    aliases |= {i: alias} if alias else {}
    problems += _tensor_problems(base, expert, alias, ignored, vocab)
    warnings += tied_warnings
  if problems:
    _raise(base, experts, problems)
  group = ExpertGroup(base, experts, vocab, (), aliases, loras)
  warnings += _vocabulary_warnings(group)
  for expert in experts:
    if expert.adapter is None:
      warnings += config_warnings(base, expert, vocab)
    warnings += tokenizer_warnings(base, expert)
  return dataclasses.replace(group, warnings=tuple(warnings))


class _Problem(NamedTuple):
  expert: str
  text: str
  is_vocabulary: bool = False


def _check_ids(experts: Sequence[Checkpoint]) -> None:
  if not experts:
    raise InputError('no experts given', fix='give at least one: --experts=DIR,DIR')
  counts = collections.Counter(expert.id for expert in experts)
  equal = [
    f'{expert.id!r}: {expert.path or "in memory"}'
    for expert in experts
    if counts[expert.id] > 1
  ]
  if equal:
    raise InputError(
      'experts with equal ids',
      equal,
      why='records and messages name an expert by its id',
      fix='name them: --expert_ids=math,code',
    )


def _tensor_problems(
  base: Checkpoint,
  expert: Checkpoint,
  alias: Mapping[str, str],
  ignored: frozenset[str],
  vocab: VocabPolicy,
) -> Iterator[_Problem]:
  for name, ref in base.tensors.items():
    if alias.get(name, name) not in expert.tensors:
      yield _Problem(expert.id, f'{name} is missing, the base has {_kind(ref)}')
  yield from _shape_problems(
    base, expert, {name: alias.get(name, name) for name in base.tensors}, vocab
  )
  for name, got in expert.tensors.items():
    if name in base.tensors or name in ignored:
      continue
    tied = ''
    if name == find_head(expert) and ties_embeddings(base.config):
      says = ties_embeddings(expert.config)
      tied = f' (the base ties its head, tie_word_embeddings of the expert is {says})'
    yield _Problem(
      expert.id, f'{name}: {_kind(got)}, the base has no such tensor{tied}'
    )


def _shape_problems(
  base: Checkpoint, expert: Checkpoint, stored: Mapping[str, str], vocab: VocabPolicy
) -> Iterator[_Problem]:
  """Of the tensors that the expert stores: by their name in the base, its own name."""
  for name, own in stored.items():
    ref, got = base.tensors.get(name), expert.tensors.get(own)
    if ref is None or got is None:  # told by others
      continue
    place = f'{name}{f" in {got.file}" if got.file else ""} is {_kind(got)}'
    if got.shape != ref.shape:
      only_rows = is_vocabulary(name, ref.shape) and got.shape[1:] == ref.shape[1:]
      if not only_rows or vocab == 'error':
        text = f'{place}, the base has {_kind(ref)}'
        yield _Problem(expert.id, text, only_rows)
    elif got.dtype != ref.dtype and not (got.is_float and ref.is_float):
      yield _Problem(expert.id, f'{place}, the base has {_kind(ref)}')


def _kind(ref: TensorRef) -> str:
  return f'{ref.dtype} {list(ref.shape)}'


def _raise(
  base: Checkpoint, experts: Sequence[Checkpoint], problems: Sequence[_Problem]
) -> None:
  """One error: who, which architecture field explains it, every tensor."""
  counts = collections.Counter(problem.expert for problem in problems)
  who = ', '.join(f'{id!r} ({count})' for id, count in counts.items())
  what = (
    f'{len(counts)} of {len(experts)} experts do not match base {base.id!r}; '
    f'tensors that differ: {who}'
  )
  for expert in experts:
    fields = [
      difference
      for difference in config_differences(base.config, expert.config)
      if difference.field in ARCHITECTURE_FIELDS and expert.adapter is None
    ]
    if fields and expert.id in counts:
      field, here, there = fields[0]
      what = (
        f'expert {expert.id!r} is another model: {field} is {there!r}, of base '
        f'{base.id!r} {here!r}\n{what}'
      )
  fixes = []
  if not all(problem.is_vocabulary for problem in problems):
    fixes.append('give experts trained from this base, saved under the same names')
  if any(problem.is_vocabulary for problem in problems):
    fixes.append(
      'where only the vocabulary sizes differ, choose --vocab=base_rows (the output '
      "has the base's rows: further rows of an expert are ignored, rows it lacks count "
      'as unchanged) or --vocab=pad (the output has the most rows of any, each averaged '
      'over the experts that have it)'
    )
  raise InputError(
    what,
    [f'expert {problem.expert!r}: {problem.text}' for problem in problems],
    why="a merge adds the experts' changes to the base, number by number",
    fix='; '.join(fixes),
  )


def _vocabulary_warnings(group: ExpertGroup) -> list[str]:
  warnings = []
  for name in group.uneven:
    rows = {
      source.id if i else 'base': group.ref(i, name).shape[0]
      for i, source in enumerate(group.sources)
    }
    sizes = ', '.join(f'{id} {n}' for id, n in rows.items())
    warnings.append(
      f'{name}: rows differ ({sizes}); --vocab={group.vocab} gives '
      f'{group.out_shape(name)[0]} rows'
    )
  return warnings
