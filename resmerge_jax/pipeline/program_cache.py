"""Compiled steps kept on disk, found again without tracing them.

JAX's own persistent cache still traces and lowers a program to find its key, which for
our kernels costs six times what loading does. This one knows what a step depends on:
its spec, the devices, the versions and this package's arithmetic.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

from resmerge_jax.version import __version__

MOST_BYTES = (
  512 * 2**20
)  # programs have up to one MB; those of other versions stay behind
_folders: list[pathlib.Path] = []  # where programs are kept: none or one
ARITHMETIC = (
  'diagnostics/statistics.py',
  'linalg',
  'methods',
  'pipeline/coefficients.py',
  'pipeline/kernels.py',
  'pipeline/kernel_spec.py',
  'pipeline/packed.py',
  'pipeline/solve.py',
  'pipeline/sums.py',
  'pipeline/updates.py',
  'sharding.py',
  'types.py',
)


def keep_programs_in(folder: pathlib.Path) -> None:
  """Turns the cache on for this process."""
  _folders[:] = [folder]


def cached(
  key: object, devices: Sequence[jax.Device], compile_program: Callable[[], Any]
) -> jax.stages.Compiled:
  """The program of this key from the cache, else from `compile_program`, then kept.

  Nothing is kept before `keep_programs_in`, where devices of other processes take part,
  or where the user has turned JAX's own cache on: a program that JAX has loaded from
  there cannot be saved again (it loses functions). A file that cannot be loaded, for
  whatever reason, is compiled again and replaced.
  """
  jax_has_its_own = jax.config.values['jax_compilation_cache_dir']
  if not _folders or jax_has_its_own or jax.process_count() > 1:
    return compile_program()
  path = _folders[0] / _digest(key, devices)
  _initialise_lapack()
  try:
    serialized, in_tree, out_tree = pickle.loads(path.read_bytes())
    with contextlib.suppress(OSError):
      path.touch()  # it was used
    return serialize_executable.deserialize_and_load(
      serialized, in_tree, out_tree, devices[0].client, devices
    )
  except Exception:  # no such file, a torn one, another format, another processor
    program = compile_program()
  _keep(path, pickle.dumps(serialize_executable.serialize(program)))
  return program


@functools.cache
def _initialise_lapack() -> None:
  """JAX looks up LAPACK's functions when it lowers a call of one.

  A program that is loaded without lowering anything would call through null pointers.
  """
  jax.jit(jnp.linalg.eigh).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))


def _keep(path: pathlib.Path, content: bytes) -> None:
  """Written aside and renamed; a cache that cannot be written is no error."""
  aside = path.with_name(f'{path.name}.{os.getpid()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.write_bytes(content)
    aside.replace(path)
    _prune(path.parent)
  except OSError:
    with contextlib.suppress(OSError):
      aside.unlink(missing_ok=True)


def _prune(folder: pathlib.Path) -> None:
  """Removes what was not used for longest, beyond MOST_BYTES."""
  found = [(file.stat(), file) for file in folder.iterdir()]
  found.sort(key=lambda entry: entry[0].st_mtime, reverse=True)
  total = 0
  for state, file in found:
    total += state.st_size
    if total > MOST_BYTES:
      file.unlink(missing_ok=True)


def _digest(key: object, devices: Sequence[jax.Device]) -> str:
  kinds = [(device.platform, device.device_kind, device.id) for device in devices]
  parts = (repr(key), kinds, devices[0].client.platform_version, _surroundings())
  return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _surroundings() -> tuple[str, ...]:
  """What a program depends on beside its key: code, versions, flags, processor."""
  code = hashlib.sha256()
  root = pathlib.Path(__file__).parents[1]
  for part in ARITHMETIC:
    for file in sorted([root / part, *(root / part).glob('*.py')]):
      if file.is_file():
        code.update(file.read_bytes())
  flags = [f'{k}={v}' for k, v in sorted(os.environ.items()) if k.startswith('XLA_')]
  settings = [f'{name}={value}' for name, value in sorted(jax.config.values.items())]
  names = (__version__, jax.__version__, jax.lib.__version__)
  return (code.hexdigest(), *names, *flags, *settings, _processor())


def _processor() -> str:
  """The processor's features: code compiled for one may not run on another."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:  # not Linux
    return platform.processor() + platform.machine()
  return next(
    (line for line in lines if line.startswith(('flags', 'Features'))),
    platform.machine(),
  )
