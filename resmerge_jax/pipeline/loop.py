"""The loop: read step n+1, compute step n, finish step n-1, all at once."""

import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from resmerge_jax.checkpoint.files import AT_ONCE
from resmerge_jax.pipeline.kernel_spec import KernelSpec, ScanAt, as_bits
from resmerge_jax.pipeline.kernels import Kernel, compile_kernel, random_start
from resmerge_jax.pipeline.staging import Staged, Staging, fill, staged
from resmerge_jax.pipeline.work import Work, computes
from resmerge_jax.plan.stacks import Step
from resmerge_jax.plan.step_sizes import STAGED

READ_THREADS = 2  # preadv and page-cache copies release the GIL; two saturate memory
COMPILE_THREADS = (
  len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 2
)
WAITS = ('read_wait', 'compile_wait', 'compute_wait', 'finish_wait')


class Done(NamedTuple):
  """A step whose program was started: its `result` (None if it is only copied).

  `finish` must call `give_back` once neither `inputs` nor a program needs the buffer.
  `pool` reads for it.
  """

  step: Step
  spec: KernelSpec | None
  inputs: Staged
  context: Any
  result: Any
  give_back: Callable[[], None]
  pool: Executor


def run_steps(
  work: Work,
  steps: Sequence[Step],
  finish: Callable[[Done], None],
  seconds: dict[str, float],
  scan: ScanAt | None = None,
) -> None:
  """Runs the programs of `steps`, or those of one scan; `finish` gets them in order.

  `seconds` (WAITS) is added to.
  """
  running: Any = None
  left = deque(steps)
  remote = any(source.is_remote for source in work.group.sources)
  specs = {id(step): work.spec(step, scan) for step in steps if computes(step)}
  with contextlib.ExitStack() as cleanup:
    pools = [
      cleanup.enter_context(_cancelling(ThreadPoolExecutor(n)))
      for n in (COMPILE_THREADS, AT_ONCE if remote else READ_THREADS, 1, 1)
    ]
    compiling, reading, fetching, finishing = pools
    kernels = {
      spec: compiling.submit(compile_kernel, spec, work.devices)
      for spec in dict.fromkeys(specs.values())
    }
    staging = Staging(STAGED)
    cleanup.callback(staging.close)
    fetch_input = functools.partial(_fetch, work, staging, reading)
    fetched: deque[tuple[Step, Future]] = deque()
    finished: deque[Future] = deque()
    while left or fetched:
      while left and len(fetched) < STAGED:
        step = left.popleft()
        fetched.append((step, fetching.submit(fetch_input, step)))
      step, future = fetched.popleft()
      inputs = _timed(seconds, 'read_wait', future.result)
      spec, context, result = specs.get(id(step)), None, None
      if spec is not None:
        kernel = _timed(seconds, 'compile_wait', kernels[spec].result)
        # One program at a time: each holds its own temporary arrays.
        _timed(
          seconds, 'compute_wait', functools.partial(jax.block_until_ready, running)
        )
        context = work.context(step, kernel.shape[0])
        result = running = _dispatch(work, kernel, spec, inputs, context)
      give_back = functools.partial(staging.give_back, inputs.buffer)
      done = Done(step, spec, inputs, context, result, give_back, reading)
      finished.append(finishing.submit(finish, done))
      while len(finished) > 1 or (finished and not fetched and not left):
        _timed(seconds, 'finish_wait', finished.popleft().result)


@contextlib.contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
  """A pool that drops what has not started when the block is left by an error."""
  try:
    yield pool
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def _timed(seconds: dict[str, float], phase: str, call: Callable[[], Any]) -> Any:
  start = time.perf_counter()
  try:
    return call()
  finally:
    seconds[phase] += time.perf_counter() - start


def _fetch(work: Work, staging: Staging, pool: Executor, step: Step) -> Staged:
  target = staged(staging, work.places[id(step)], step.stack)
  fill(step, target, work.group, work.readers, pool)
  return target


def _dispatch(
  work: Work, kernel: Kernel, spec: KernelSpec, inputs: Staged, context: Any
) -> Any:
  def spread(value: np.ndarray, sharding: Any) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

  def cut(
    parts: Sequence[np.ndarray], shape: Sequence[int], sharding: Any
  ) -> jax.Array:
    """One array of parts that lie on the devices of the shards."""
    on_devices = [
      jax.device_put(as_bits(part), shard.device)
      for part, shard in zip(parts, inputs.shards, strict=True)
    ]
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, on_devices)

  layers, rows, cols = kernel.shape
  n, f = spec.n_experts, spec.rank
  return kernel.run(
    cut([s.base for s in inputs.shards], kernel.shape, kernel.base),
    cut(
      [s.experts for s in inputs.shards],
      (layers, spec.n_whole, rows, cols),
      kernel.experts,
    ),
    (
      cut([s.left for s in inputs.shards], (layers, n, rows, f), kernel.experts),
      cut([s.right for s in inputs.shards], (layers, n, f, cols), kernel.layer),
    )
    if f
    else None,
    jax.tree.map(lambda x: spread(x, kernel.layer), context),
    spread(random_start(work.seed, spec.start_shape), kernel.whole),
    None,
  )
