"""Lists the merge methods and post-processors, with parameters, sources and costs.

Without an argument all of them; with names, these in full: what the parameters mean,
and which of them change how often the weights are read.

How to read it:
  reads the weights 4 times   3 passes that only count or sum, then the one that merges
  by blocks of rows           any matrix goes through in small memory
  whole matrices              one matrix of every expert must fit into memory
  every floating tensor       vectors, embeddings and LM head get the method as well
  matrices                    all tensors of two dimensions, embeddings and LM head too
  hidden matrices             not embeddings and LM head
What a method does not get goes by task arithmetic, their mean unless --config.outside
says otherwise. config.rules decide it tensor by tensor.

Examples:
  python -m tools.methods
  Two of them in full:
    python -m tools.methods resmerge task_arithmetic
  A method with a parameter, and a post-processor after it:
    python -m tools.merge --method=task_arithmetic --config.method.reduce=sum
      --post=liti:eta=0.5 --base=BASE --experts=A,B --output=MERGED
"""

import dataclasses
import inspect
import math
import re
import typing
from collections.abc import Iterator
from typing import Any

from resmerge_jax.cli.app import run_app
from resmerge_jax.errors import InputError
from resmerge_jax.methods.base import Method, Post
from resmerge_jax.methods.table import METHODS, POSTS
from resmerge_jax.parameters import did_you_mean

TENSORS = {
  'hidden': 'hidden matrices',
  'matrices': 'matrices',
  'all': 'every floating tensor',
}


def main(argv: list[str]) -> None:
  """Prints all methods and post-processors, or those that are named."""
  known: dict[str, Method | Post] = {**METHODS, **POSTS}
  unknown = [f'{n!r}{did_you_mean(n, known)}' for n in argv[1:] if n not in known]
  if unknown:
    raise InputError(
      'unknown methods', unknown, fix=f'use any of {", ".join(sorted(known))}'
    )
  if argv[1:]:
    print('\n\n'.join('\n'.join(in_full(known[name])) for name in argv[1:]))
    return
  blocks = [['methods (--method=NAME --config.method.PARAMETER=VALUE)']]
  blocks += [in_short(method) for method in METHODS.values()]
  blocks += [['post-processors (--post=NAME:PARAMETER=VALUE,PARAMETER=VALUE)']]
  blocks += [in_short(post) for post in POSTS.values()]
  print('\n\n'.join('\n'.join(block) for block in blocks))


def in_short(entry: Method | Post) -> list[str]:
  """Name, source and cost, and a line per parameter."""
  head = [f'{entry.name}  {entry.source}']
  if isinstance(entry, Method):
    head.append(f'  {"; ".join(cost(entry, entry.params()))}')
  elif entry.whole_matrix:
    head.append('  hidden matrices, whole')
  rows = [
    (field.name, _default(field), _meaning(entry.params, field.name))
    for field in dataclasses.fields(entry.params)
  ]
  widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
  return head + [
    f'  {name:{widths[0]}}  {default:{widths[1]}}  {meaning}'.rstrip()
    for name, default, meaning in rows
  ]


def in_full(entry: Method | Post) -> list[str]:
  """With the whole text on the parameters, their choices and what these cost."""
  lines = [f'{entry.name}  {entry.source}']
  about = inspect.getmodule(entry.params).__doc__
  lines += ['', *inspect.cleandoc(about or '').splitlines()]
  for kind in reversed(entry.params.__mro__[:-1]):
    if kind.__doc__ and not kind.__doc__.startswith(f'{kind.__name__}('):
      lines += ['', *inspect.cleandoc(kind.__doc__).splitlines()]
  fields = dataclasses.fields(entry.params)
  lines += ['', 'parameters' if fields else 'no parameters']
  for field in fields:
    choices = ' | '.join(_choices(entry.params, field.name))
    lines.append(
      f'  {field.name} = {_default(field)}' + (f'  ({choices})' * bool(choices))
    )
  if not isinstance(entry, Method):
    return lines
  lines += ['', 'cost', f'  {"; ".join(cost(entry, entry.params()))}']
  for setting, differing in _other_costs(entry):
    lines.append(f'  {setting}: {"; ".join(differing)}')
  if entry.branches:
    lines += ['', f'branches in the records: {", ".join(entry.branches)}']
  return lines


def cost(method: Method, params: Any) -> list[str]:
  """What it reads and how often, what it gets, and what it takes beside."""
  passes = 1 + len(method.scans(params))
  rank = method.head_rank(params)
  whole = method.whole_matrix(params)
  return [
    f'reads the weights {"once" if passes == 1 else f"{passes} times"}',
    f'{TENSORS[method.gets(params)]}, {"whole" if whole else "by blocks of rows"}',
    *([f'leading singular triplets per expert: {rank}'] if rank else []),
    *(['float64, on the CPU'] if method.float64 else []),
    'takes --weights' if method.takes_weights else 'no --weights',
  ]


def _other_costs(method: Method) -> Iterator[tuple[str, list[str]]]:
  """Choices of a parameter that change the cost of the defaults, and how."""
  usual = cost(method, method.params())
  for field in dataclasses.fields(method.params):
    for choice in _choices(method.params, field.name):
      try:
        other = cost(method, method.params(**{field.name: choice}))
      except InputError:  # a choice that needs another parameter beside it
        continue
      differing = [part for part in other if part not in usual]
      if differing:
        yield f'{field.name}={choice}', differing


def _choices(params: type, name: str) -> tuple[str, ...]:
  hint = typing.get_type_hints(params)[name]
  return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _default(field: dataclasses.Field) -> str:
  """As it is written on the command line; what has no right default must be given."""
  value = field.default
  if value in (dataclasses.MISSING, ()) or (
    isinstance(value, float) and math.isnan(value)
  ):
    return 'required'
  return 'unset' if value in (None, '') else str(value)


def _meaning(params: type, name: str) -> str:
  """The sentence on a parameter in the texts of its class; else its choices."""
  texts = [kind.__doc__ or '' for kind in params.__mro__[:-1]]
  sentences = [s for text in texts for s in _sentences(text)]
  found = next((s for s in sentences if re.match(rf'`{name}`', s)), None) or next(
    (s for s in sentences if re.search(rf'`{name}`', s)), None
  )
  if found:
    return found.removeprefix(f'`{name}`: ').removesuffix('.')
  return ' | '.join(_choices(params, name))


def _sentences(text: str) -> list[str]:
  """Split at full stops and empty lines; a `name` begins a sentence after them."""
  paragraphs = [' '.join(p.split()) for p in inspect.cleandoc(text).split('\n\n')]
  return [s for p in paragraphs for s in re.split(r'(?<=[.;])\s+(?=[`A-Z])', p)]


def run() -> None:
  """Entry point of `resmerge-methods` and `python -m tools.methods`."""
  run_app(main, __doc__)
