"""The loop: read step n+1, compute step n, write step n-1, all at once."""

import contextlib
import dataclasses
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

from resmerge_jax.checkpoint.group import ExpertGroup
from resmerge_jax.checkpoint.reader import Reader, block_bytes
from resmerge_jax.host_float import to_float32
from resmerge_jax.methods.table import method_of
from resmerge_jax.methods.task_arithmetic import TaskArithmetic
from resmerge_jax.pipeline.checks import check_copied, check_merged
from resmerge_jax.pipeline.exact_heads import replace_flagged
from resmerge_jax.pipeline.fetched import Piece, fetch
from resmerge_jax.pipeline.kernels import (
  Kernel,
  KernelSpec,
  Merged,
  as_bits,
  compile_kernel,
  random_start,
  step_spec,
)
from resmerge_jax.pipeline.records import Records
from resmerge_jax.pipeline.staging import (
  Places,
  Shard,
  Staged,
  Staging,
  fill,
  places,
  staged,
)
from resmerge_jax.plan.plan import MergePlan
from resmerge_jax.plan.stacks import STAGED, Step
from resmerge_jax.sharding import stack_sharding
from resmerge_jax.types import DTYPES

READ_THREADS = 2  # preadv and page-cache copies release the GIL; two saturate memory
COMPILE_THREADS = (
  len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 2
)


class Sink(Protocol):
  """Where merged bytes go: a folder writer, or arrays in memory.

  `finish` follows the last `write` of a step; `numbers` are what `Records.restore` needs
  of it, None for a copied step.
  """

  def write(self, name: str, offset_bytes: int, data: np.ndarray) -> None: ...

  def finish(self, step: Step, numbers: Any) -> None: ...


def silent(label: str, nbytes: int) -> None:
  """Progress that is not shown."""
  del label, nbytes


@dataclasses.dataclass(frozen=True)
class Work:
  """What the loop needs beside the plan. `weights`: one per expert.

  `finished`: place in the plan -> numbers, of steps that an earlier run wrote.
  `owners`: the process that makes each weight file alone, on `devices` of its own.
  """

  plan: MergePlan
  group: ExpertGroup
  readers: Sequence[Reader]
  sink: Sink
  method: Any
  outside: TaskArithmetic
  weights: tuple[float, ...]
  seed: int
  devices: tuple[jax.Device, ...]
  progress: Callable[[str, int], None] = silent
  finished: Mapping[int, Any] = dataclasses.field(default_factory=dict)
  mesh_shape: tuple[int, int] | None = None
  owners: Mapping[str, int] | None = None

  @functools.cached_property
  def places(self) -> dict[int, Places]:
    """By the id of a step: where this process takes part in it."""
    return {id(s): _places(self, i, s) for i, s in enumerate(self.plan.steps)}

  @property
  def steps(self) -> list[Step]:
    """What is left to do for this process."""
    return [
      step
      for i, step in enumerate(self.plan.steps)
      if i not in self.finished and self.places[id(step)]
    ]


def stream(work: Work) -> tuple[Records, dict[str, float]]:
  """Merges every step of the plan not finished. Returns records, seconds per phase.

  Raises:
    InputError: NaN or Inf in an input or in the output, or the disk fails.
  """
  records = Records(work.group, work.plan.rules)
  for i, numbers in work.finished.items():
    if numbers is not None:
      records.restore(work.plan.steps[i], numbers)
  steps = deque(work.steps)
  seconds = dict.fromkeys(
    ('read_wait', 'compile_wait', 'compute_wait', 'finish_wait'), 0.0
  )
  running: Merged | None = None
  with contextlib.ExitStack() as cleanup:
    pools = [
      cleanup.enter_context(_cancelling(ThreadPoolExecutor(n)))
      for n in (COMPILE_THREADS, READ_THREADS, 1, 1)
    ]
    compiling, reading, fetching, finishing = pools
    kernels = {
      spec: compiling.submit(compile_kernel, spec, work.devices)
      for spec in dict.fromkeys(_spec(work, s) for s in steps if _computes(s))
    }
    staging = Staging(STAGED)
    cleanup.callback(staging.close)
    fetch_input = functools.partial(_fetch, work, staging, reading)
    fetched: deque[tuple[Step, Future]] = deque()
    finished: deque[Future] = deque()
    while steps or fetched:
      while steps and len(fetched) < STAGED:
        step = steps.popleft()
        fetched.append((step, fetching.submit(fetch_input, step)))
      step, future = fetched.popleft()
      inputs = _timed(seconds, 'read_wait', future.result)
      spec = _spec(work, step)
      result = None
      if _computes(step):
        kernel = _timed(seconds, 'compile_wait', kernels[spec].result)
        # One program at a time: each holds its own temporary arrays.
        _timed(
          seconds, 'compute_wait', functools.partial(jax.block_until_ready, running)
        )
        result = running = _dispatch(work, kernel, spec, step, inputs)
      job = functools.partial(_finish, work, staging, reading, records, spec)
      finished.append(finishing.submit(job, step, inputs, result))
      while len(finished) > 1 or (finished and not fetched and not steps):
        _timed(seconds, 'finish_wait', finished.popleft().result)
  return records, seconds


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


def _computes(step: Step) -> bool:
  return step.stack.action != 'base'


def _spec(work: Work, step: Step) -> KernelSpec:
  return step_spec(step, work.method, work.outside, work.mesh_shape)


def _places(work: Work, number: int, step: Step) -> Places:
  """Where this process takes part in a step: nowhere, if it has none of its devices."""
  stack, process = step.stack, jax.process_index()
  if work.owners is not None:
    owner = work.owners[work.plan.layout.where[step.names[0]].file]
  else:
    owner = process if _computes(step) else number % jax.process_count()
  if owner != process:
    return []
  if _computes(step):
    spec = _spec(work, step)
    return places(
      stack_sharding(spec.mesh(work.devices)), spec.padded_shape(work.devices)
    )
  return [(None, range(stack.layers), range(stack.rows))]


def _fetch(
  work: Work, staging: Staging, pool: ThreadPoolExecutor, step: Step
) -> Staged:
  target = staged(staging, work.places[id(step)], step.stack)
  fill(step, target, work.group, work.readers, pool)
  return target


def _weights(work: Work, step: Step) -> np.ndarray:
  """Per expert; 0 for one that has no such rows where vocabularies are padded."""
  weights_N = np.asarray(work.weights, np.float32)
  if work.group.vocab == 'pad':
    weights_N = weights_N * np.asarray(step.present[1:], np.float32)
  return weights_N


def _dispatch(
  work: Work, kernel: Kernel, spec: KernelSpec, step: Step, inputs: Staged
) -> Merged:
  def whole(value: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(value.shape, kernel.whole, value.__getitem__)

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
  return kernel.run(
    cut([s.base for s in inputs.shards], kernel.shape, kernel.base),
    cut(
      [s.experts for s in inputs.shards],
      (layers, spec.n_experts, rows, cols),
      kernel.experts,
    ),
    whole(_weights(work, step)),
    whole(random_start(work.seed, spec.start_shape)),
    None,
  )


def _finish(
  work: Work,
  staging: Staging,
  pool: ThreadPoolExecutor,
  records: Records,
  spec: KernelSpec,
  step: Step,
  inputs: Staged,
  result: Merged | None,
) -> None:
  """Waits for a step, mends what the solver flagged, checks, writes, records."""
  numbers = None
  if result is None:
    out_LxRxC = _copied(step, inputs.shards[0].base)[: len(step.names)]
    if step.stack.is_float:
      check_copied(work.group, step, inputs, out_LxRxC)
    n_rows = step.row_stop - step.row_start
    _write(
      work,
      step,
      [Piece(i, range(n_rows), x[:n_rows]) for i, x in enumerate(out_LxRxC)],
    )
    staging.give_back(inputs.buffer)
  else:
    read_layer = functools.partial(_whole_layer, work, pool, step, inputs)
    fetched, exact_LxN = replace_flagged(
      spec,
      step,
      fetch(step, result),
      read_layer,
      _weights(work, step),
      jax.local_devices()[0],
    )
    check_merged(work.group, step, fetched, inputs)
    branches = method_of(spec.params).branches
    numbers = records.add(step, fetched, branches, exact_LxN, inputs)
    staging.give_back(inputs.buffer)  # the next read may begin while this is written
    _write(work, step, fetched.pieces)
  work.sink.finish(step, numbers)
  work.progress(step.label, step.nbytes)


def _whole_layer(
  work: Work, pool: ThreadPoolExecutor, step: Step, inputs: Staged, layer: int
) -> Shard:
  """All rows of one layer of a step: as staged, or read again if they are not here."""
  rows = step.stack.rows
  for shard in inputs.shards:
    if layer in shard.layers and len(shard.rows) >= rows:
      at = slice(layer - shard.layers.start, layer - shard.layers.start + 1)
      base, experts = shard.base[at, :rows], shard.experts[at, :, :rows]
      return Shard(None, range(1), range(rows), base, experts)
  one = dataclasses.replace(step, names=step.names[layer : layer + 1])
  target = staged(Staging(1), [(None, range(1), range(rows))], step.stack)
  fill(one, target, work.group, work.readers, pool)
  return target.shards[0]


def _copied(step: Step, base_LxRxC: np.ndarray) -> np.ndarray:
  stored, wanted = step.stack.dtypes[0], step.stack.out_dtype
  if stored == wanted:
    return base_LxRxC
  with np.errstate(over='ignore'):  # the caller looks for Inf
    return to_float32(base_LxRxC).astype(DTYPES[wanted])


def _write(work: Work, step: Step, pieces: Sequence[Piece]) -> None:
  for layer, rows, out_RxC in pieces:
    name, at = step.names[layer], step.row_start
    if step.stack.out_dtype == 'F64':
      out_RxC = out_RxC.astype(np.float64)
    ref = work.plan.layout.where[name]
    begin, _ = block_bytes(ref, at + rows.start, at + rows.stop)
    work.sink.write(name, begin, out_RxC)
