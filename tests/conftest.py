"""What every test gets: eight CPU devices, a cache folder of this session, its worker."""

import os
import pathlib
import shutil
import tempfile
from typing import Any

import pytest

os.environ['JAX_PLATFORMS'] = 'cpu'  # here and below: before anything imports JAX
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # LAPACK beside busy workers
# Commands that merge start themselves again without these two.
os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
os.environ.setdefault('OPENBLAS_THREAD_TIMEOUT', '4')


def pytest_configure(config: pytest.Config) -> None:
  """A cache folder for workers and commands: what one compiles serves all.

  Nothing of the user's is read or changed, but for matplotlib's list of fonts, which
  costs seconds.
  """
  if 'PYTEST_XDIST_WORKER' in os.environ:
    return  # the folder is inherited
  fonts = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
  os.environ.setdefault('MPLCONFIGDIR', str(fonts / 'matplotlib'))
  folder = tempfile.mkdtemp(prefix='resmerge-tests-')
  os.environ['XDG_CACHE_HOME'] = folder
  config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
  """A file's tests go to one worker: they share merges and compiled programs.

  So do all tests that start several processes; these share the cores. The mark xdist_group
  does nothing: xdist 3.8 hides groups in names that pytest 9.2 does not let it change.
  """
  from xdist.scheduler import LoadFileScheduling

  class Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
      file = super()._split_scope(nodeid)
      return 'processes' if 'processes' in file else file

  return Scheduling(config, log)


@pytest.fixture(autouse=True, scope='session')
def _kept_programs() -> None:
  """Merges of the tests use the folder as commands do."""
  from resmerge_jax.cli.runtime import keep_programs

  keep_programs()
