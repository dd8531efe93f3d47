"""README.md of the output: what was merged, how, and what to beware of."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_CAUTION = """\
A merge combines parameters, not intentions. This model may inherit unsafe, biased or
wrong behaviour from any of its experts, and may show combinations of behaviours that no
expert showed alone; safety training of the base or of one expert need not survive. None
of this was tested by merging. Evaluate the model, for safety as well as for ability,
before using it."""


def model_card(
  *,
  name: str,
  base: tuple[str, str],
  experts: Mapping[str, str],
  method: str,
  reference: str,
  parameters: Mapping[str, Any],
  rule_counts: Mapping[str, int],
  output_dtype: str,
  formats: str,
  command: str,
  config: str,
  warnings: Sequence[str],
  versions: Mapping[str, str],
) -> str:
  """The model card, a function of its arguments alone (no time, no machine).

  Args:
    name: of the output.
    base: its id and header hash.
    experts: id -> header hash, in merge order.
    method: its name in the method table.
    reference: the paper, with its equations if there are several forms.
    parameters: all parameters of the method.
    rule_counts: treatment -> number of tensors.
    output_dtype: as configured.
    formats: what is written, in words.
    command: shell command that repeats the merge, '' for the Python API.
    config: the whole configuration as text.
    warnings: everything the run warned about.
    versions: package -> version.
  """
  n_tensors = sum(rule_counts.values())
  sections = [
    _front_matter(
      [base[0], *experts], 'transformers' if 'safetensors' in formats else 'orbax'
    ),
    f'# {_plain(name)}\n\nA merge of {len(experts)} expert'
    f'{"s" * (len(experts) != 1)} of `{base[0]}` by the method `{method}`, made with '
    'resmerge_jax, without training and without data.',
    f'> [!WARNING]\n{_quoted(_CAUTION)}',
    '## What was merged\n\nThe hash is the SHA-256 of all safetensors headers (names, '
    'shapes and offsets), in file order.\n\n'
    + _table(
      ('role', 'id', 'header hash'),
      [('base', *base), *(('expert', *expert) for expert in experts.items())],
    ),
    f'## Method\n\n`{method}`: {_plain(reference)}\n\n'
    + _table(('parameter', 'value'), _parameter_rows(parameters)),
    f'## Tensors\n\n{n_tensors} tensors; dtype of the floating ones: `{output_dtype}`; '
    f'written as {formats}.\n\n'
    + _table(('treatment', 'tensors'), [(k, str(n)) for k, n in rule_counts.items()]),
    f'## Warnings of the run\n\n{_warnings(warnings)}',
    '## How to make it again\n\n'
    + (f'{_fence(command, "bash")}\n\nwith the configuration\n\n' if command else '')
    + _fence(config),
    '## Versions\n\n' + _table(('package', 'version'), list(versions.items())),
  ]
  return '\n\n'.join(sections) + '\n'


def _front_matter(models: Sequence[str], library: str) -> str:
  """Model ids are quoted as JSON, which YAML reads: an id may look like a number."""
  listed = '\n'.join(f'- {json.dumps(model, ensure_ascii=False)}' for model in models)
  return (
    f'---\nbase_model:\n{listed}\nbase_model_relation: merge\n'
    f'library_name: {library}\ntags:\n- merge\n- resmerge_jax\n---'
  )


def _plain(text: str) -> str:
  """One line of text."""
  return ' '.join(text.split())


def _quoted(text: str) -> str:
  return '\n'.join(f'> {line}' for line in text.splitlines())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ['---'] * len(header)]
  lines += [[f'`{_plain(cell)}`'.replace('|', r'\|') for cell in row] for row in rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _parameter_rows(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Nested mappings become dotted names, as they are set on the command line."""
  rows: list[tuple[str, str]] = []
  for name, value in parameters.items():
    if isinstance(value, Mapping):
      rows += [(f'{name}.{key}', text) for key, text in _parameter_rows(value)]
    else:
      rows.append((name, str(value)))
  return rows


def _warnings(warnings: Sequence[str]) -> str:
  if not warnings:
    return 'None.'
  return '\n'.join(f'- {_plain(warning)}' for warning in warnings)


def _fence(text: str, language: str = '') -> str:
  fence = '```'
  while fence in text:
    fence += '`'
  return f'{fence}{language}\n{text.rstrip()}\n{fence}'
