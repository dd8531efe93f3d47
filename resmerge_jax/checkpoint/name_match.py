"""Which tensor of an expert is which of the base: same names, or a reason why not."""

import dataclasses
from collections.abc import Mapping, Sequence

from resmerge_jax.checkpoint.folder import Checkpoint
from resmerge_jax.checkpoint.lora import Lora
from resmerge_jax.checkpoint.names import is_buffer, other_prefix, prefix_notes
from resmerge_jax.checkpoint.summary import fold_names
from resmerge_jax.checkpoint.tied_head import match_head


@dataclasses.dataclass(frozen=True)
class Match:
  """The names of one expert against the base's.

  `aliases`: base name -> stored name where these differ. `ignored`: stored names that
  the merge leaves out. `absent`: base names where the expert counts as unchanged.
  `extra`: stored names that the base has not, for which nothing speaks. Of an adapter:
  `loras` by base name, and `problems`.
  """

  aliases: Mapping[str, str]
  ignored: tuple[str, ...]
  absent: frozenset[str]
  extra: tuple[str, ...]
  warnings: tuple[str, ...]
  loras: Mapping[str, Lora] = dataclasses.field(default_factory=dict)
  problems: tuple[str, ...] = ()


def match_names(
  base: Checkpoint, expert: Checkpoint, extra: str, missing: str
) -> Match:
  """Matches names by the policies of `check_group`; shapes are not looked at."""
  tied, ignored_head, head_warnings = match_head(base, expert)
  known = {*base.tensors, *ignored_head}
  only_there = [name for name in expert.tensors if name not in known]
  only_here = [n for n in base.tensors if n not in expert.tensors and n not in tied]
  renamed = other_prefix(only_here, only_there)
  taken = set(renamed.values())
  buffers_there, only_there = _apart([n for n in only_there if n not in taken])
  buffers_here, only_here = _apart([n for n in only_here if n not in renamed])
  ignored = only_there if extra == 'ignore' else []
  absent = only_here if missing == 'base' else []
  notes = [
    *(f'{note}, and taken as these' for note in prefix_notes(renamed)),
    *_listed('ignoring buffers, which config.json determines', buffers_there),
    *_listed("lacks buffers, the output has the base's", buffers_here),
    *_listed('ignoring tensors that the base does not have (--extra=ignore)', ignored),
    *_listed('lacks tensors, which count as unchanged (--missing=base)', absent),
  ]
  return Match(
    aliases=tied | renamed,
    ignored=(*ignored_head, *buffers_there, *ignored),
    absent=frozenset([*buffers_here, *absent]),
    extra=() if ignored else tuple(only_there),
    warnings=(*head_warnings, *(f'expert {expert.id!r}: {note}' for note in notes)),
  )


def _apart(names: Sequence[str]) -> tuple[list[str], list[str]]:
  """Buffers, and all others."""
  return [n for n in names if is_buffer(n)], [n for n in names if not is_buffer(n)]


def _listed(text: str, names: Sequence[str]) -> list[str]:
  """The text with all names, if there are any."""
  patterns = ', '.join(pattern for pattern, _ in fold_names(names))
  return [f'{text}: {patterns} ({len(names)} in all)'] if names else []
