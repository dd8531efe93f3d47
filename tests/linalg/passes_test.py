"""A pass gives the same bits with any number of threads."""

import os
import subprocess
import sys

import pytest

# Shapes at which XLA:CPU's sums in (RxP)^T RxC and (RxC)^T RxC depend on them. Prints a
# line of hashes for each way, shape and P.
PROGRAM = """
import hashlib, jax, jax.numpy as jnp, numpy as np
from resmerge_jax.linalg import passes, quadrature
from resmerge_jax.linalg.krylov import top_k
from resmerge_jax.linalg.task_vectors import TaskVectors
from resmerge_jax.pipeline.kernels import CPU_OPTIONS

scale = jnp.float32(1)

def in_blocks(delta_RxC, x_PxC):
  stored = TaskVectors(delta_RxC, delta_RxC[None], are_differences=True)
  return passes.InBlocks.of(stored, jnp.int32(0)).there_and_back(x_PxC, scale)

def formed(delta_RxC, x_PxC):
  return passes.Formed(delta_RxC).there_and_back(x_PxC, scale)

def thin(delta_RxC, x_PxC):
  return top_k(delta_RxC, 1, x_PxC)

def lanczos(delta_RxC, x_PxC):
  return quadrature.tridiagonals(delta_RxC, x_PxC[:1])['diagonal_VxM']

def spectrum(delta_RxC, x_PxC):
  return quadrature.spectrum(delta_RxC)

ways = [(in_blocks, (2230, 3584), 4), (formed, (512, 3584), 4), (formed, (4864, 896), 11)]
ways += [(way, (896, 64), 4) for way in (thin, lanczos, spectrum)]
rng = np.random.default_rng(0)
for way, shape, p in ways:
  delta_RxC = rng.standard_normal(shape, np.float32)
  x_PxC = rng.standard_normal((p, shape[1]), np.float32)
  found = jax.jit(way, compiler_options=CPU_OPTIONS)(delta_RxC, x_PxC)
  print(*[hashlib.md5(np.asarray(x)).hexdigest() for x in jax.tree.leaves(found)])
"""


def digests(n_threads: int) -> list[str]:
  threads = {'NPROC': str(n_threads), 'JAX_NUM_CPU_DEVICES': '1'}
  command = [sys.executable, '-c', PROGRAM]
  done = subprocess.run(
    command, env=os.environ | threads, capture_output=True, text=True, check=True
  )
  return done.stdout.splitlines()


@pytest.fixture(scope='module')
def by_one_thread() -> list[str]:
  return digests(1)


@pytest.mark.parametrize('n_threads', [2, 4])
def test_bits_do_not_depend_on_the_number_of_threads(
  by_one_thread: list[str], n_threads: int
):
  assert len(by_one_thread) == 6
  assert digests(n_threads) == by_one_thread
