"""Settings of the process that a merge wants; the library itself changes none."""

import os
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from resmerge_jax.cli.app import run_app
from resmerge_jax.sizes import cores

if TYPE_CHECKING:
  from resmerge_jax.config import MergeConfig

MALLOC = 'GLIBC_TUNABLES'
# After each call OpenBLAS, LAPACK's and NumPy's, has its threads wait busily on the cores
# that XLA's need: 2**26 cycles, unless told (as a power of two).
PATIENCE, SHORTEST = 'OPENBLAS_THREAD_TIMEOUT', '4'
# Few heaps, which keep what is freed of them; large blocks go back to the system. With
# one the threads that compile wait for each other, with many more stays behind in them.
ALLOCATION = (
  'glibc.malloc.hugetlb=1:glibc.malloc.arena_max=4'
  ':glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=134217728'
)

_DEVICE_COUNT = 'xla_force_host_platform_device_count'
# Without these libtpu looks for the TPU of this machine, and says so at length.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_STDERR_LOG_LEVEL': '3',
  'TPU_LOG_DIR': 'disabled',
}


def tune_libraries() -> None:
  """Starts the command again with malloc and OpenBLAS tuned, on Linux with glibc.

  XLA allocates its temporary arrays anew for every step; with 4 KiB pages, or pages
  given back each time, their faults cost as much as the arithmetic. Both libraries read
  their settings only at program start. A value that the user has set stands.
  """
  settings = {MALLOC: ALLOCATION, PATIENCE: SHORTEST}
  if platform.libc_ver()[0] == 'glibc' and settings.keys() - os.environ.keys():
    for name, value in settings.items():
      os.environ.setdefault(name, value)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run_merging(
  main: Callable[[list[str]], None], doc: str | None, define: Callable[[list[str]], Any]
) -> None:
  """`run_app` for a command that merges: libraries tuned, other processes not awaited."""
  tune_libraries()
  try:
    run_app(main, doc, define=define)
  except BaseException as end:
    from resmerge_jax import processes  # not before the command has started again

    processes.leave_at_once(end)
    raise


def keep_programs() -> None:
  """Keeps compiled merge programs in the user's cache folder, without lines of source."""
  # here, so that flags are checked before JAX is loaded
  import jax

  from resmerge_jax.pipeline.program_cache import keep_programs_in

  # These lines would be 5 % of compiling.
  jax.config.update('jax_traceback_in_locations_limit', 0)
  keep_programs_in(_cache_folder() / 'programs')


def keep_jit_programs() -> None:
  """Keeps what `jax.jit` compiles likewise, in JAX's own cache."""
  import jax

  jax.config.update('jax_compilation_cache_dir', str(_cache_folder() / 'jit'))


def use_cores(
  wanted: 'MergeConfig | Mapping[str, MergeConfig]', coordinator: str | None = None
) -> None:
  """A CPU device per core for methods that solve eigenvalue problems on the host.

  LAPACK uses one core for most of such a problem; each device takes layers of its own, as
  many as the memory budget allows. Call before anything asks for devices. A number that
  the user has set (JAX_NUM_CPU_DEVICES) stands; of several processes each has one device.
  """
  import jax

  configs = wanted.values() if isinstance(wanted, Mapping) else [wanted]
  is_set = 'JAX_NUM_CPU_DEVICES' in os.environ or _DEVICE_COUNT in os.environ.get(
    'XLA_FLAGS', ''
  )
  if coordinator or is_set:
    return
  if any(config.on_host for config in configs):
    jax.config.update('jax_num_cpu_devices', cores())
    # Read when JAX first needs LAPACK, whose threads would take the cores twice.
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')


def _cache_folder() -> pathlib.Path:
  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(root) / 'resmerge_jax'


def define_process_flags() -> None:
  """Of commands that several processes run together."""
  flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, of several processes'
  )
  flags.DEFINE_integer('num_processes', None, 'how many processes merge together')
  flags.DEFINE_integer('process_id', None, 'which of them this is, from 0')


def only_compile() -> None:
  """Lets this process compile for TPUs and take none, also where there are some."""
  import jax

  for variable, value in _NO_TPU.items():
    os.environ.setdefault(variable, value)
  jax.config.update('jax_platforms', 'cpu')
