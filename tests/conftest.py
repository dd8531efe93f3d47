"""Eight CPU devices for every test, set before anything imports JAX."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # LAPACK beside busy workers
os.environ.setdefault(
  'GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1'
)  # merge's run() re-executes without it
