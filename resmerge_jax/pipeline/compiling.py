"""Programs that compile while the steps before them are read and computed."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait

import jax

from resmerge_jax.pipeline.coefficients import compile_coefficients
from resmerge_jax.pipeline.kernel_spec import KernelSpec
from resmerge_jax.pipeline.kernels import Kernel, compile_kernel
from resmerge_jax.pipeline.turns import Turn
from resmerge_jax.sizes import cores

PATIENCE_S = 0.5  # writes of earlier steps may keep the other cores busy as long


class Compiling:
  """All programs of some turns, compiled in the order in which they are needed.

  CPUs have steps to compute meanwhile, so half of the cores compile: all programs at once
  would come late. While the loop waits long for one it computes nothing, and one more
  compiles.

  Args:
    turns: of each step.
    devices: that the programs are for; accelerators leave their host all cores.
    pool: makes a pool of so many threads, which ends with the loop.
  """

  def __init__(
    self,
    turns: Iterable[Sequence[Turn]],
    devices: tuple[jax.Device, ...],
    pool: Callable[[int], ThreadPoolExecutor],
  ):
    self._devices = devices
    on_cpu = devices[0].platform == 'cpu'
    first = pool(max(cores() // 2, 1) if on_cpu else cores())
    self._more = pool(1)
    self._kernels: dict[KernelSpec, Future[Kernel]] = {}
    self._refits: dict[KernelSpec, Future[jax.stages.Compiled]] = {}
    self._extra: Future[Kernel] | None = None
    for turn in itertools.chain.from_iterable(turns):
      if turn.spec is not None and turn.spec not in self._kernels:
        self._submit(first, turn.spec)
      own = turn.own if turn.measured_of is not None else None
      if own is not None and own not in self._refits:
        self._refits[own] = first.submit(compile_coefficients, own, devices)

  def kernel(self, spec: KernelSpec) -> Kernel:
    """Waits for a program of a step."""
    future = self._kernels[spec]
    if future not in wait([future], PATIENCE_S).done:
      self._compile_more()
    return self._kernels[spec].result()

  def refit(self, turn: Turn) -> jax.stages.Compiled | None:
    """Waits for what makes coefficients of what another turn has measured, if it does."""
    if turn.measured_of is None or turn.own is None:
      return None
    return self._refits[turn.own].result()

  def _submit(self, pool: Executor, spec: KernelSpec) -> Future[Kernel]:
    self._kernels[spec] = pool.submit(compile_kernel, spec, self._devices)
    return self._kernels[spec]

  def _compile_more(self) -> None:
    """Starts the next program that nothing compiles yet, if none was started so."""
    if self._extra is not None and not self._extra.done():
      return
    for spec, future in self._kernels.items():
      if future.cancel():
        self._extra = self._submit(self._more, spec)
        return
