"""Settings of the process that a merge wants; the library itself changes none."""

import os
import pathlib
import platform
import sys

MALLOC = 'GLIBC_TUNABLES'
# One heap, which keeps what is freed of it; large blocks go back to the system.
ALLOCATION = (
  'glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1'
  ':glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=134217728'
)


def tune_allocation() -> None:
  """Starts the command again with malloc asking for huge pages, on Linux with glibc.

  XLA allocates its temporary arrays anew for every step; with 4 KiB pages, or pages
  given back each time, their faults cost as much as the arithmetic. The C library reads this setting only at
  program start. A value that the user has set stands.
  """
  if platform.libc_ver()[0] == 'glibc' and MALLOC not in os.environ:
    os.environ[MALLOC] = ALLOCATION
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_programs() -> None:
  """Keeps compiled programs in the user's cache folder for the next run."""
  # here, so that flags are checked before JAX is loaded
  from resmerge_jax.pipeline.program_cache import keep_programs_in

  root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  keep_programs_in(pathlib.Path(root) / 'resmerge_jax' / 'programs')
