"""What docs/recipes.md shows works as shown."""

import contextlib
import dataclasses
import importlib
import pathlib
import re
import shlex

import jax
import numpy as np

import resmerge_jax
from tests import commands, folders, groups

PAGE = pathlib.Path(__file__).parents[1] / 'docs' / 'recipes.md'


def blocks(kind: str) -> list[str]:
  return re.findall(rf'```{kind}\n(.*?)```', PAGE.read_text(), re.S)


def test_every_snippet_runs(tmp_path):
  weights = [folders.tensors(i, vocab=8) for i in range(3)]
  for name, weight in zip(('BASE', 'MATH', 'CODE'), weights, strict=True):
    folders.write_folder(tmp_path / name, weight, vocab_size=8)
  with contextlib.chdir(tmp_path):
    for line in '\n'.join(blocks('bash')).strip().splitlines():
      _, _, module, *words = shlex.split(line)
      command = importlib.import_module(module.replace('tools.', 'resmerge_jax.cli.'))
      done = commands.run(command, *words)
      assert (done.status, done.err) == (0, ''), line
    merged, lighter = (
      groups.weight_bytes(pathlib.Path(n)) for n in ('MERGED', 'LIGHTER')
    )
    names = {'resmerge_jax': resmerge_jax, 'jax': jax, 'dataclasses': dataclasses}
    for block in blocks('python'):
      exec(block, names)
    assert groups.weight_bytes(pathlib.Path('AGAIN')) == merged
    assert groups.weight_bytes(pathlib.Path('LIGHTER')) == lighter != merged
    arrays = {k: np.asarray(v) for k, v in names['parameters'].items()}
    groups.assert_same_bits(arrays, groups.load(pathlib.Path('MERGED')))


def test_every_method_of_that_form_is_named():
  from resmerge_jax.methods.table import METHODS, POSTS

  text = (
    PAGE.read_text().partition('**Which methods.**')[2].partition('**Which inputs')[0]
  )
  named = set(re.findall('`([a-z_]+)`', text))
  have = {name for name, m in METHODS.items() if _has_form(m)}
  have |= {name for name, post in POSTS.items() if post.keeps_form}
  assert named == have


def _has_form(method) -> bool:
  settings = [method.params()]
  if 'on' in {field.name for field in dataclasses.fields(method.params)}:
    settings.append(method.params(on='task_vectors'))
  return any(method.terms(params, 3, 1) is not None for params in settings)
