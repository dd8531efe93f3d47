"""A base and its experts: whether their headers allow a merge, tensor by tensor."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from resmerge_jax.checkpoint.adapter import match_adapter
from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.group_files import config_warnings, tokenizer_warnings
from resmerge_jax.checkpoint.lora import Lora
from resmerge_jax.checkpoint.model_config import (
  ARCHITECTURE_FIELDS,
  config_differences,
  ties_embeddings,
)
from resmerge_jax.checkpoint.name_match import Match, match_names
from resmerge_jax.checkpoint.tied_head import find_head, head_warnings
from resmerge_jax.errors import InputError
from resmerge_jax.types import TensorRef, find

VocabPolicy = Literal['error', 'base_rows', 'pad']
ExtraPolicy = Literal['error', 'ignore']
MissingPolicy = Literal['error', 'base']

_VOCABULARY = re.compile(r'(embed_tokens|wte|lm_head|word_embeddings)\.weight$')


@dataclasses.dataclass(frozen=True)
class ExpertGroup:
  """Checkpoints that can be merged. Source 0 is the base, source i the i-th expert.

  `aliases[i][name]` names the tensor in which source i stores output tensor `name`,
  where that is not `name` itself: the embedding, for an expert that ties its head, a
  name with another prefix, all that an adapter stores whole. `ignored[i]` are tensors
  of source i that the merge leaves out, `absent[i]` those of the base that it has not:
  it counts as unchanged there. `loras[i][name]` is the update of an adapter.
  Names may be those of parts of a tensor (`TensorRef.part_names`) wherever one is given.
  """

  base: Checkpoint
  experts: tuple[Checkpoint, ...]
  vocab: VocabPolicy = 'error'
  warnings: tuple[str, ...] = ()
  aliases: Mapping[int, Mapping[str, str]] = dataclasses.field(default_factory=dict)
  ignored: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  absent: Mapping[int, frozenset[str]] = dataclasses.field(default_factory=dict)
  loras: Mapping[int, Mapping[str, Lora]] = dataclasses.field(default_factory=dict)

  @property
  def sources(self) -> tuple[Checkpoint, ...]:
    return (self.base, *self.experts)

  @property
  def names(self) -> tuple[str, ...]:
    """Output tensors, in the base's order."""
    return tuple(self.base.tensors)

  def has(self, i: int, name: str) -> bool:
    """Whether source i stores output tensor `name`."""
    absent = self.absent.get(i, ())
    return not absent or find(self.base.tensors, name)[0].name not in absent

  def ref(self, i: int, name: str) -> TensorRef:
    """Output tensor `name` as source i stores it; as the base does, if it has it not."""
    ref, part = self._find(i, name)
    return ref if part is None else ref.part(part)

  def place(self, i: int, name: str) -> tuple[TensorRef, int]:
    """The stored tensor of source i that holds `name`, and the row where it begins."""
    ref, part = self._find(i, name)
    return ref, ref.first_row(part)

  def stores(self, i: int, name: str) -> bool:
    """Whether source i is a model, or an adapter that has the whole tensor `name`."""
    if self.sources[i].adapter is None:
      return True
    return find(self.base.tensors, name)[0].name in self.aliases.get(i, {})

  def lora(self, i: int, name: str) -> Lora | None:
    """The update of tensor `name` that source i stores as factors."""
    return self.loras.get(i, {}).get(name)

  def _find(self, i: int, name: str) -> tuple[TensorRef, int | None]:
    ref, part = find(self.base.tensors, name)
    if ref.name in self.absent.get(i, ()) or not self.stores(i, name):
      return ref, part
    stored = self.aliases.get(i, {}).get(ref.name, ref.name)
    return self.sources[i].tensors[stored], part

  @functools.cached_property
  def nowhere(self) -> tuple[str, ...]:
    """Tensors of the base that no expert has."""
    if len(self.absent) < len(self.experts):
      return ()
    return tuple(n for n in self.names if all(n in a for a in self.absent.values()))

  def out_shape(self, name: str) -> tuple[int, ...]:
    """The base's shape; with `pad` a vocabulary tensor has the most rows of any."""
    shape = self.ref(0, name).shape
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
  base: Checkpoint,
  experts: Sequence[Checkpoint],
  vocab: VocabPolicy = 'error',
  extra: ExtraPolicy = 'error',
  missing: MissingPolicy = 'error',
) -> ExpertGroup:
  """The group of `base` and `experts`, all disagreements judged from their headers.

  Args:
    base: what the experts were trained from; names and shapes of the output are its.
    experts: at least one, with different ids.
    vocab: what to do where embeddings and heads differ in rows only. 'error': refuse.
      'base_rows': the output has the base's rows; further rows of an expert are
      ignored, rows that it lacks count as unchanged. 'pad': the output has the most
      rows of any; a row is averaged over the experts that have it.
    extra: what to do with tensors of an expert that the base has not. 'error': refuse.
      'ignore': leave them out.
    missing: what to do where an expert lacks a tensor. 'error': refuse. 'base': it
      counts as unchanged.

  Buffers (names.BUFFER) may be extra or missing: config.json says what they are. So may
  a tied head. A prefix that alone differs is no difference. Warnings name all of it.

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
  matches = {
    i: match_adapter(base, expert)
    if expert.adapter is not None
    else match_names(base, expert, extra, missing)
    for i, expert in enumerate(experts, 1)
  }
  problems: list[_Problem] = []
  for i, match in matches.items():
    problems += _tensor_problems(base, experts[i - 1], match, vocab)
    warnings += match.warnings
  if problems:
    _raise(base, experts, problems)
  group = ExpertGroup(
    base,
    experts,
    vocab,
    aliases={i: match.aliases for i, match in matches.items() if match.aliases},
    ignored={i: match.ignored for i, match in matches.items() if match.ignored},
    absent={i: match.absent for i, match in matches.items() if match.absent},
    loras={i: match.loras for i, match in matches.items() if match.loras},
  )
  warnings += _vocabulary_warnings(group)
  for expert in experts:
    if expert.adapter is None:
      warnings += config_warnings(base, expert, vocab)
    warnings += tokenizer_warnings(base, expert)
  return dataclasses.replace(group, warnings=tuple(warnings))


class _Problem(NamedTuple):
  expert: str
  text: str
  kind: Literal['shape', 'vocabulary', 'extra', 'missing'] = 'shape'


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
  match: Match,
  vocab: VocabPolicy,
) -> Iterator[_Problem]:
  yield from (_Problem(expert.id, text) for text in match.problems)
  for name, ref in base.tensors.items():
    if name in match.absent or (expert.adapter and name not in match.aliases):
      continue
    got = expert.tensors.get(match.aliases.get(name, name))
    if got is None:
      text = f'{name} is missing, the base has {_kind(ref)}'
      yield _Problem(expert.id, text, 'missing')
      continue
    place = f'{got.name}{f" in {got.file}" if got.file else ""} is {_kind(got)}'
    if got.shape != ref.shape:
      only_rows = is_vocabulary(name, ref.shape) and got.shape[1:] == ref.shape[1:]
      if not only_rows or vocab == 'error':
        text = f'{place}, the base has {_kind(ref)}'
        yield _Problem(expert.id, text, 'vocabulary' if only_rows else 'shape')
    elif got.dtype != ref.dtype and not (got.is_float and ref.is_float):
      yield _Problem(expert.id, f'{place}, the base has {_kind(ref)}')
  for name in match.extra:
    got, tied = expert.tensors[name], ''
    if name == find_head(expert) and ties_embeddings(base.config):
      says = ties_embeddings(expert.config)
      tied = f' (the base ties its head, tie_word_embeddings of the expert is {says})'
    text = f'{name}: {_kind(got)}, the base has no such tensor{tied}'
    yield _Problem(expert.id, text, 'extra')


def _kind(ref: TensorRef) -> str:
  return f'{ref.dtype} {list(ref.shape)}'


_FIXES = {
  'missing': '--missing=base lets an expert count as unchanged where it has no tensor',
  'extra': '--extra=ignore leaves out what the base has not',
  'vocabulary': 'where only the vocabulary sizes differ, choose --vocab=base_rows (the '
  "output has the base's rows: further rows of an expert are ignored, rows it lacks "
  'count as unchanged) or --vocab=pad (the output has the most rows of any, each '
  'averaged over the experts that have it)',
}


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
  kinds = {problem.kind for problem in problems}
  fixes = [text for kind, text in _FIXES.items() if kind in kinds]
  if kinds != {'vocabulary'}:
    fixes.insert(0, 'give experts trained from this base, saved under the same names')
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
