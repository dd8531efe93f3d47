"""The loop: read step n+1, compute step n, finish step n-1, all at once."""

import contextlib
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from resmerge_jax.checkpoint.files import AT_ONCE
from resmerge_jax.linalg.exact import HostHead
from resmerge_jax.pipeline.compiling import Compiling
from resmerge_jax.pipeline.kernel_spec import KernelSpec, ScanAt, as_bits
from resmerge_jax.pipeline.kernels import Kernel, Lent, random_start
from resmerge_jax.pipeline.staging import Staged, Staging, expect, fill, staged
from resmerge_jax.pipeline.turns import Turn
from resmerge_jax.pipeline.work import Work
from resmerge_jax.plan.stacks import Step
from resmerge_jax.plan.step_sizes import STAGED

READ_THREADS = 2  # preadv and page-cache copies release the GIL; two saturate memory
WAITS = ('read_wait', 'compile_wait', 'compute_wait', 'finish_wait')


class Done(NamedTuple):
  """A step whose program was started: its `result` (None if it is only copied).

  `finish` must call `give_back`, of the `last` turn of a step, once neither `inputs` nor
  a program needs the buffer. `pool` reads for it. `exact`: heads that the turns of the
  step have solved on the host.
  """

  step: Step
  turn: Turn
  inputs: Staged
  context: Any
  result: Any
  last: bool
  give_back: Callable[[], None]
  pool: Executor
  exact: dict[tuple[int, int, int], HostHead]


def run_steps(
  work: Work,
  steps: Sequence[Step],
  finish: Callable[[Done], None],
  seconds: dict[str, float],
  scan: ScanAt | None = None,
  turns: Callable[[Step], Sequence[Turn]] | None = None,
) -> None:
  """Runs the programs of `steps`, or those of one scan; `finish` gets them in order.

  `seconds` (WAITS) is added to. `turns`: what is computed of a step, if that is more than
  `work` by itself wants.
  """
  running: Any = None
  left = deque(steps)
  remote = any(source.is_remote for source in work.group.sources)
  turns = turns or functools.partial(work.turns, scan=scan)
  turns_of = {id(step): turns(step) for step in steps}
  with contextlib.ExitStack() as cleanup:

    def pool(n_threads: int) -> ThreadPoolExecutor:
      return cleanup.enter_context(_cancelling(ThreadPoolExecutor(n_threads)))

    compiling = Compiling(turns_of.values(), work.devices, pool)
    reading = pool(AT_ONCE if remote else READ_THREADS)
    fetching, finishing = pool(1), pool(1)
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
      stored: tuple[Any, ...] | None = None
      lent: list[tuple[KernelSpec, Lent | None]] = []
      exact: dict[tuple[int, int, int], HostHead] = {}
      give_back = functools.partial(staging.give_back, inputs.buffer)
      for turn in turns_of[id(step)]:
        context, result = None, None
        last = turn is turns_of[id(step)][-1]
        if turn.spec is not None:
          kernel = _timed(
            seconds, 'compile_wait', functools.partial(compiling.kernel, turn.spec)
          )
          # One program at a time: each holds its own temporary arrays.
          _timed(
            seconds, 'compute_wait', functools.partial(jax.block_until_ready, running)
          )
          context = turn.context(kernel.shape[0])
          stored = stored or _stored(kernel, turn.spec, inputs)
          refit = _timed(
            seconds, 'compile_wait', functools.partial(compiling.refit, turn)
          )
          result = running = _dispatch(kernel, turn, stored, context, lent, refit)
          lent.append((turn.spec, result.lent if turn.spec.lends else None))
        done = Done(
          step, turn, inputs, context, result, last, give_back, reading, exact
        )
        finished.append(finishing.submit(finish, done))
        while len(finished) > 1 or (finished and last and not fetched and not left):
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
  where = work.places[id(step)]
  expect(step, where, work.plan.devices, work.group, work.readers)
  target = staged(staging, where, step.stack, work.plan.devices)
  fill(step, target, work.group, work.readers, pool)
  return target


def _stored(kernel: Kernel, spec: KernelSpec, inputs: Staged) -> tuple[Any, ...]:
  """Base, experts and factors of a step on the devices, as its programs take them."""

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
  return (
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
  )


def _dispatch(
  kernel: Kernel,
  turn: Turn,
  stored: tuple[Any, ...],
  context: Any,
  lent: Sequence[tuple[KernelSpec, Lent | None]],
  refit: jax.stages.Compiled | None,
) -> Any:
  """Starts a program. `lent`: program and loan of each turn of the step before it.

  `refit` makes of what was measured the coefficients of this turn.
  """

  def spread(value: np.ndarray, sharding: Any) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)

  spec, head = turn.spec, None
  assert spec is not None
  context = jax.tree.map(lambda x: spread(x, kernel.layer), context)
  if turn.heads_of is not None:
    lender, loan = lent[turn.heads_of]
    assert loan is not None
    head = loan.heads[lender.solved.index(spec.head_rank)]
  start = spread(random_start(turn.seed, spec.start_shape), kernel.whole)
  if turn.measured_of is None:
    return kernel.run(*stored, context, start, head)
  _, loan = lent[turn.measured_of]
  assert refit is not None
  assert loan is not None
  coefficients, stats = refit(loan.measured)
  context = dataclasses.replace(context, found={**context.found, **coefficients})
  return kernel.run(*stored, context, start, head)._replace(stats=stats)
