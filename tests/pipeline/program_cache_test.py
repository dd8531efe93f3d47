"""Programs from the cache do what compiled ones do, and bad files do no harm."""

import os
import pathlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resmerge_jax.pipeline import program_cache
from resmerge_jax.pipeline.program_cache import cached, keep_programs_in

ONE = jax.ShapeDtypeStruct((4, 4), jnp.float32)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
  before = list(program_cache._folders)
  keep_programs_in(tmp_path / 'programs')
  yield tmp_path / 'programs'
  program_cache._folders[:] = before


class Compiler:
  """Compiles a program with a LAPACK call in it, and counts how often."""

  def __init__(self) -> None:
    self.count = 0

  def __call__(self) -> jax.stages.Compiled:
    self.count += 1
    return jax.jit(lambda x: jnp.linalg.eigh(x)[0] + 1).lower(ONE).compile()


def ask(compiler: Compiler, key: object = 'key') -> np.ndarray:
  program = cached(key, jax.devices()[:1], compiler)
  return np.asarray(program(jnp.diag(jnp.arange(4.0))))


def test_a_program_is_compiled_once(folder: pathlib.Path):
  compiler = Compiler()
  first, second = ask(compiler), ask(compiler)
  assert compiler.count == 1
  np.testing.assert_array_equal(first, [1, 2, 3, 4])
  np.testing.assert_array_equal(second, first)
  assert len(list(folder.iterdir())) == 1


def test_programs_not_used_for_longest_are_removed(folder, monkeypatch):
  compiler = Compiler()
  for age, key in enumerate(('new', 'middle', 'old')):
    ask(compiler, key)
    (file,) = [f for f in folder.iterdir() if time.time() - f.stat().st_mtime < 500]
    os.utime(file, (time.time() - 1000 * (age + 1),) * 2)
  ask(compiler, 'old')  # from the folder: used now
  assert compiler.count == 3
  size = max(file.stat().st_size for file in folder.iterdir())
  monkeypatch.setattr(program_cache, 'MOST_BYTES', int(3.5 * size))
  ask(compiler, 'another')
  assert (compiler.count, len(list(folder.iterdir()))) == (4, 3)
  for key in ('another', 'old', 'new'):
    ask(compiler, key)
  assert compiler.count == 4


def test_another_key_or_device_is_another_program(folder: pathlib.Path):
  compiler = Compiler()
  ask(compiler)
  ask(compiler, 'other')
  cached('key', jax.devices()[1:2], compiler)
  assert compiler.count == 3
  assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize('content', [b'', b'torn', None])
def test_a_bad_file_is_replaced(folder: pathlib.Path, content: bytes | None):
  compiler = Compiler()
  ask(compiler)
  (file,) = folder.iterdir()
  good = file.read_bytes()
  file.write_bytes(good[: len(good) // 2] if content is None else content)
  np.testing.assert_array_equal(ask(compiler), [1, 2, 3, 4])
  assert compiler.count == 2
  ask(compiler)
  assert compiler.count == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: pathlib.Path):
  (tmp_path / 'file').write_text('')
  before = list(program_cache._folders)
  keep_programs_in(tmp_path / 'file' / 'programs')
  compiler = Compiler()
  try:
    np.testing.assert_array_equal(ask(compiler), [1, 2, 3, 4])
  finally:
    program_cache._folders[:] = before
  assert compiler.count == 1


def test_nothing_is_kept_unasked_or_beside_jax_own_cache(
  folder: pathlib.Path, tmp_path: pathlib.Path
):
  compiler = Compiler()
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'jax'))
  try:
    ask(compiler)
  finally:
    jax.config.update('jax_compilation_cache_dir', None)
  assert not folder.exists()
  program_cache._folders.clear()
  ask(compiler)
  assert compiler.count == 2
  assert not folder.exists()
